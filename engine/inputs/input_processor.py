"""Input processor: convert a request to its sequences, which is the work done outside the decoding thread."""

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
    """The one method of a `GrammarCompiler` that `compile_constraint` needs; a dry run has another implementation."""

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> Compiled:
        """Compile a constraint, or raise InvalidConstraint."""


class InputProcessor:
    """Processes the requests of one model. Any thread may use it, except the one that decodes."""

    def __init__(
        self, encoder: PromptEncoder, grammars: GrammarCompiler, *, stopwords: list[str], context_size: int
    ) -> None:
        self._encoder = encoder
        self._grammars = grammars
        self._stopwords = stopwords
        self._context_size = context_size

    def process(self, client: str, request: Request) -> list[Sequence]:
        """Render, tokenise, compile and check a request; return one sequence for each of its `n` answers.

        Raises an EngineError about the request.
        """
        prompt = self._encoder.encode(request)
        spec = self._encoder.output_spec(request, prompt, self._stopwords)
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
            forced, state = self._start_grammar(request, grammar, self._context_size - len(prompt))
            tokens += forced
        return Sequence(
            client=client,
            request_id=request.id,
            index=index,
            tokens=tokens,
            num_prompt_tokens=len(prompt),
            max_tokens=request.max_tokens,
            sampling=_sampling_of(request.sampling, index),
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

    def _start_grammar(self, request: Request, grammar: Grammar, max_new_tokens: int) -> tuple[list[int], GrammarState]:
        """Return the forced first tokens of every answer, and the state after them.

        No token is forced with logprobs, since only a sampled token has one, nor if the limits leave no room behind them.
        """
        jumps = request.logprobs is None
        state = grammar.start(jumps=jumps)
        forced = state.jump()
        if len(forced) < (max_new_tokens if request.max_tokens is None else min(max_new_tokens, request.max_tokens)):
            return forced, state
        return [], grammar.start(jumps=jumps)


def compile_constraint(compiler: Compiler[Compiled], request: Request, spec: OutputSpec) -> Compiled | None:
    """Compile the constraint of an answer; None if it has none.

    The request's own constraint is compiled by itself before it becomes part of an internal grammar. Propagates compiler
    errors; those caused by a tool schema carry `param="tools"`.
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


def _sampling_of(sampling: SamplingParams, index: int) -> SamplingParams:
    """Derive the seed of an answer: several answers to one request differ, and the next run repeats them."""
    if index == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % 2**32)
