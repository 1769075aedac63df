"""Dry run of batch lines: the tokens of each line, or the problem that it would fail with, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.api_keys import estimated_tokens
from core.errors import ApiError
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from engine.backends.vocabularies import load_vocabulary
from engine.errors import EngineError
from engine.inputs.dry_run import CompileBudget, ConstraintChecker, DryRun, DryRunResult
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.compiler import GrammarCompiler
from engine.types import Failed, ForwardRequest, Priority, Request
from workers.batches.line_checker import AcceptedLine
from workers.generation.endpoints.base import EndpointAdapter, EngineRequest, RequestOrigin

_NO_ORIGIN: Final = RequestOrigin(job_id="", tenant="", priority=Priority.BATCH)


@dataclass(slots=True)
class LineTokens:
    """Tokens of a line's prompts, and the most that its answers may have together; `is_checked` as in `DryRunResult`."""

    num_prompt: int = 0
    max_output: int = 0
    is_checked: bool = True


class BatchDryRun:
    """One dry run per model; its vocabulary is loaded for the model's first line. All share a budget and a sandbox."""

    def __init__(self, budget: CompileBudget | None = None) -> None:
        self._by_model: dict[str, DryRun] = {}
        self._budget = budget or CompileBudget()
        self._sandbox = CompileSandbox()

    def measure(self, line: AcceptedLine) -> LineTokens:
        """Count a line's tokens. Raises the ApiError that it would fail with, and EngineError for a broken model."""
        model, total = line.model, LineTokens()
        if model.backend is BackendKind.OPENAI:
            return _estimate(line)
        dry_run = self._by_model.get(model.name) or self._load(model)
        for request in line.adapter.engine_requests(model, _NO_ORIGIN):
            num_prompt, is_checked = _run(dry_run, line.adapter, request)
            num_answers = request.n if isinstance(request, Request) else 0
            total.num_prompt += num_prompt
            room = max(0, model.context_size - num_prompt)  # a prompt that is only counted may be longer
            total.max_output += num_answers * min(line.plan.expected_tokens, room)
            total.is_checked &= is_checked
        return total

    def close(self) -> None:
        """End the sandbox's process."""
        self._sandbox.close()

    def _load(self, model: ModelConfig) -> DryRun:
        loaded = load_vocabulary(model.backend, model.parameters.model, trust_remote_code=model.trust_remote_code)
        grammars = GrammarCompiler(
            loaded.for_grammars, num_vocab=loaded.tokenizer.num_vocab, max_cached=1, sandbox=self._sandbox
        )
        dry_run = DryRun(
            loaded.tokenizer,
            ConstraintChecker(grammars, self._budget),
            template=model.chat_template,
            context_size=model.context_size,
            embed_tokens=min(model.context_size, loaded.most_tokens or model.context_size),
        )
        self._by_model[model.name] = dry_run
        return dry_run


def _estimate(line: AcceptedLine) -> LineTokens:
    """Tokens by the size of the body, since only its server has the tokenizer."""
    (request,) = line.adapter.engine_requests(line.model, _NO_ORIGIN)
    assert isinstance(request, ForwardRequest), "the body is forwarded"
    return LineTokens(estimated_tokens(len(request.body)), line.plan.expected_tokens, is_checked=False)


def _run(dry_run: DryRun, adapter: EndpointAdapter, request: EngineRequest) -> DryRunResult:
    """Raises an engine's error as the problem of the line's endpoint."""
    try:
        return dry_run.run(request)
    except EngineError as error:
        failed = Failed(request_id="", code=error.code, message=str(error), param=error.param)
        raise ApiError(adapter.to_problem(failed)) from None
