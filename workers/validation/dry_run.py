"""Rehearsals: a line of a batch file, asked of its model without running it: its tokens, or the problem it would fail with.

Knows exchanges, models and vocabularies; nothing of files or reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from llguidance import LLTokenizer

from core.errors import ApiError
from core.model_files import ModelBackend, ModelCatalog, ModelConfig
from core.schemas.batch import BatchLine
from engine.backends.fake.tokenizer import FakeTokenizer, fake_grammar_tokenizer
from engine.backends.llama.grammar import grammar_tokenizer
from engine.backends.llama.tokenizer import load_vocabulary
from engine.errors import EngineError
from engine.inputs.dry_run import CompileBudget, ConstraintChecker, DryRun, DryRunResult
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.compiler import GrammarCompiler
from engine.tokenizer import Tokenizer
from engine.types import Failed, Priority, Request
from workers.batches.plan import PlanLine
from workers.generation.endpoints.base import EndpointAdapter, EngineRequest, RequestOrigin
from workers.generation.endpoints.registry import read_adapter

_NOBODY: Final = RequestOrigin(job_id="", tenant="", priority=Priority.BATCH)


@dataclass(slots=True)
class LineTokens:
    """Of the prompts, and the most that their answers may have together; `is_checked` as `DryRunResult` has it."""

    num_prompt: int = 0
    max_output: int = 0
    is_checked: bool = True


class BatchDryRun:
    """A rehearsal per model, its vocabulary loaded when the first line asks for it. All of them share a budget and a sandbox."""

    def __init__(self, catalog: ModelCatalog, budget: CompileBudget | None = None) -> None:
        self._catalog = catalog
        self._by_model: dict[str, DryRun] = {}
        self._budget = budget or CompileBudget()
        self._sandbox = CompileSandbox()

    def measure(self, endpoint: str, planned: PlanLine, line: BatchLine) -> LineTokens:
        """The line's tokens; raises the ApiError that it would fail with, and EngineError for a model that is broken."""
        model = self._catalog.get(planned.model)
        assert model is not None, "the judge took it"
        rehearsal = self._by_model.get(model.name) or self._load(model)
        exchange, total = read_adapter(endpoint, line.body), LineTokens()
        for ask in exchange.engine_requests(model, _NOBODY):
            num_prompt, is_checked = _rehearse(rehearsal, exchange, ask)
            num_answers = ask.n if isinstance(ask, Request) else 0
            total.num_prompt += num_prompt
            total.max_output += num_answers * min(planned.expected_tokens, model.context_size - num_prompt)
            total.is_checked &= is_checked
        return total

    def close(self) -> None:
        """End the warden's process."""
        self._sandbox.close()

    def _load(self, model: ModelConfig) -> DryRun:
        tokenizer, for_grammars, embed_tokens = _vocabulary(model)
        grammars = GrammarCompiler(for_grammars, num_vocab=tokenizer.num_vocab, max_cached=1, sandbox=self._sandbox)
        rehearsal = DryRun(
            tokenizer,
            ConstraintChecker(grammars, self._budget),
            template=model.chat_template,
            context_size=model.context_size,
            embed_tokens=embed_tokens,
        )
        self._by_model[model.name] = rehearsal
        return rehearsal


class _Vocabulary(NamedTuple):
    """`for_grammars` makes its other half; `embed_tokens` is the longest input that its model embeds."""

    tokenizer: Tokenizer
    for_grammars: Callable[[], LLTokenizer]
    embed_tokens: int


def _vocabulary(model: ModelConfig) -> _Vocabulary:
    if model.backend is ModelBackend.FAKE:
        fake = FakeTokenizer()
        return _Vocabulary(fake, partial(fake_grammar_tokenizer, fake), model.context_size)
    tokenizer = load_vocabulary(model.parameters.model)
    embed_tokens = min(model.context_size, tokenizer.trained_context or model.context_size)
    return _Vocabulary(tokenizer, partial(grammar_tokenizer, tokenizer), embed_tokens)


def _rehearse(rehearsal: DryRun, exchange: EndpointAdapter, ask: EngineRequest) -> DryRunResult:
    """Raises what the engine would fail it with, in the words of its endpoint."""
    try:
        return rehearsal.run(ask)
    except EngineError as error:
        failed = Failed(request_id="", code=error.code, message=str(error), param=error.param)
        raise ApiError(exchange.to_problem(failed)) from None
