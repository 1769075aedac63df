"""Rehearsal: would the engine take this request? Its prompt is counted and its constraint compiled, and nothing is run.

For checking whole files beforehand: needs a vocabulary, no weights and no context. Does what the intake does, in the same
order, and raises the same errors; what an engine only finds out while it decodes is not found here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engine.embedding import encode_inputs
from engine.errors import InvalidConstraint, SandboxUnavailable
from engine.inputs.input_processor import compile_constraint
from engine.inputs.prompt_encoder import PromptEncoder
from engine.structured.compiler import GrammarCompiler
from engine.tokenizer import Tokenizer
from engine.types import Constraint, EmbedRequest, Request


class DryRunResult(NamedTuple):
    """`num_prompt_tokens` as its usage would say; `is_checked` is False where the budget left its constraint uncompiled."""

    num_prompt_tokens: int
    is_checked: bool = True


@dataclass(slots=True, kw_only=True)
class CompileBudget:
    """What may still be spent on compiling, by all that share it: so many different constraints, so many seconds.

    Most take milliseconds. One that brings the warden down takes a second and more, and a file may be full of them.
    """

    constraints: int = 1000
    seconds: float = 60.0

    @property
    def is_spent(self) -> bool:
        """Nothing new is compiled any more."""
        return self.constraints <= 0 or self.seconds <= 0


class DryRun:
    """Of one model. `template` overrides the model's own; an input to embed has `embed_tokens` at most."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        constraints: ConstraintChecker,
        *,
        template: str | None,
        context_size: int,
        embed_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._embed_tokens = embed_tokens
        self._encoder = PromptEncoder(tokenizer, template=template, context_size=context_size)
        self._constraints = constraints

    def run(self, request: Request | EmbedRequest) -> DryRunResult:
        """Raises what the engine would refuse it with."""
        if isinstance(request, EmbedRequest):
            return DryRunResult(sum(map(len, encode_inputs(request, self._tokenizer, self._embed_tokens))))
        prompt = self._encoder.encode(request)
        spec = self._encoder.output_format.spec(request, prompt)
        try:
            compile_constraint(self._constraints, request, spec)
        except BudgetExhausted:
            return DryRunResult(len(prompt), is_checked=False)
        return DryRunResult(len(prompt))


class BudgetExhausted(Exception):
    """The budget is spent."""


class ConstraintChecker:
    """Compiles each different constraint of one model once and keeps only what came of it, so that a file of many costs
    little memory."""

    def __init__(
        self, grammars: GrammarCompiler, budget: CompileBudget, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grammars = grammars
        self._budget = budget
        self._clock = clock
        self._errors: dict[bytes, InvalidConstraint | None] = {}

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> None:
        """As `GrammarCompiler.compile`; raises Untried too."""
        named = f"{constraint.kind}\0{constraint.param}\0{constraint.text}"
        key = hashlib.sha256(named.encode()).digest()
        if key not in self._errors:
            self._errors[key] = self._compile(constraint, is_internal=is_internal)
        if (error := self._errors[key]) is not None:
            raise InvalidConstraint(str(error), param=error.param)

    def _compile(self, constraint: Constraint, *, is_internal: bool) -> InvalidConstraint | None:
        if self._budget.is_spent:
            raise BudgetExhausted
        self._budget.constraints -= 1
        began_at = self._clock()
        try:
            self._grammars.compile(constraint, is_internal=is_internal)
        except InvalidConstraint as error:
            return InvalidConstraint(str(error), param=error.param)  # without its traceback, which holds frames
        except SandboxUnavailable:
            self._budget.constraints = 0  # this machine's trouble, not the constraint's: it is waited for once
            raise BudgetExhausted from None
        finally:
            self._budget.seconds -= self._clock() - began_at
        return None
