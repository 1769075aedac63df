"""From a request to its sequences: the work that can be done beside the decoding thread. Knows prompts, constraints, limits."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from engine.errors import InvalidConstraint
from engine.inputs.prompt_encoder import PromptEncoder
from engine.outputs.output_stream import OutputSpec
from engine.scheduler.sequence import Sequence
from engine.structured.compiler import GrammarCompiler
from engine.structured.grammar import Grammar, GrammarState
from engine.types import Constraint, Request, SamplingParams

Compiled = TypeVar("Compiled", covariant=True)


class Compiler(Protocol[Compiled]):
    """See `engine.structured.grammar.GrammarCompiler`."""

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> Compiled:
        """Of a constraint; raises InvalidConstraint."""


class InputProcessor:
    """Of one model. Any thread may use it, except the one that decodes."""

    def __init__(
        self, encoder: PromptEncoder, grammars: GrammarCompiler, *, stopwords: list[str], context_size: int
    ) -> None:
        self._encoder = encoder
        self._grammars = grammars
        self._stopwords = stopwords
        self._context_size = context_size

    def process(self, client: str, request: Request) -> list[Sequence]:
        """Render, tokenise, compile and check; one sequence for each answer asked for.

        Raises an EngineError that says what is wrong with the request.
        """
        prompt = self._encoder.encode(request)
        spec = self._encoder.output_format.spec(request, prompt, self._stopwords)
        grammar = compile_constraint(self._grammars, request, spec)
        return [self._sequence(client, request, index, prompt, spec, grammar) for index in range(request.n)]

    def _sequence(
        self,
        client: str,
        request: Request,
        index: int,
        prompt: list[int],
        spec: OutputSpec,
        grammar: Grammar | None,
    ) -> Sequence:
        tokens, state = list(prompt), None
        if grammar is not None:
            forced, state = self._begin(request, grammar, self._context_size - len(prompt))
            tokens += forced
        return Sequence(
            client=client,
            request_id=request.id,
            index=index,
            tokens=tokens,
            num_prompt_tokens=len(prompt),
            max_tokens=request.max_tokens,
            sampling=_sampling(request.sampling, index),
            spec=spec,
            constraint=state,
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            echo=request.echo,
            stream=request.stream,
            priority=request.priority,
            tenant=request.tenant,
            group=request.group,
            exclusive=request.exclusive,
        )

    def _begin(self, request: Request, grammar: Grammar, room: int) -> tuple[list[int], GrammarState]:
        """The state before the first token that is sampled, and those that every answer begins with.

        Where logprobs are asked for nothing is forced, since each token must be sampled to have one.
        """
        jumps = request.logprobs is None
        state = grammar.start(jumps=jumps)
        forced = state.jump()
        if len(forced) < min(room, request.max_tokens or room):
            return forced, state
        return [], grammar.start(jumps=jumps)


def compile_constraint(compiler: Compiler[Compiled], request: Request, spec: OutputSpec) -> Compiled | None:
    """Compile what the answer must look like; a schema is checked by itself before it becomes part of a grammar of ours.

    None where it may look like anything. Raises what the compiler does, and says of tools that it is about them.
    """
    if request.constraint is not None:
        grammar = compiler.compile(request.constraint)
        if spec.constraint == request.constraint:
            return grammar
    if spec.constraint is None:
        return None
    try:
        return compiler.compile(spec.constraint, is_internal=True)
    except InvalidConstraint as error:
        param = "tools" if spec.tool_format is not None else error.param
        raise InvalidConstraint(str(error), param=param) from None


def _sampling(sampling: SamplingParams, index: int) -> SamplingParams:
    """Several answers from one seed must differ, and be the same ones next time."""
    if index == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % 2**32)
