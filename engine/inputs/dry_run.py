"""Dry run: check that an engine would accept a request, by counting its prompt and compiling its constraint.

Used to check whole files beforehand: it needs a vocabulary, but no weights and no context. It does the work of the input
processor in the same order and raises the same errors. Errors that appear only while decoding are not found.
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
from engine.types import AnyRequest, Constraint, EmbedRequest, ForwardRequest


class DryRunResult(NamedTuple):
    """`num_prompt_tokens` as in the usage; `is_checked` is False if the budget did not suffice to compile the constraint."""

    num_prompt_tokens: int
    is_checked: bool = True


@dataclass(slots=True, kw_only=True)
class CompileBudget:
    """Number of different constraints, and seconds of compiling, that are left to all checkers that share this budget.

    Most constraints take milliseconds. One that crashes the sandbox takes a second or more, and a file may be full of them.
    """

    constraints: int = 1000
    seconds: float = 60.0

    @property
    def is_spent(self) -> bool:
        """Is compiling over for new constraints?"""
        return self.constraints <= 0 or self.seconds <= 0


class DryRun:
    """Dry runs of one model. `template` overrides the model's own; `embed_tokens` is the limit of one embedding input."""

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

    def run(self, request: AnyRequest) -> DryRunResult:
        """Count and check a request; raises the EngineError with which the engine would reject it."""
        assert not isinstance(request, ForwardRequest), "only the server upstream can check it"
        if isinstance(request, EmbedRequest):
            return DryRunResult(sum(map(len, encode_inputs(request, self._tokenizer, self._embed_tokens))))
        prompt = self._encoder.encode(request)
        spec = self._encoder.output_spec(request, prompt)
        try:
            compile_constraint(self._constraints, request, spec)
        except BudgetExhausted:
            return DryRunResult(len(prompt), is_checked=False)
        return DryRunResult(len(prompt))


class BudgetExhausted(Exception):
    """The compile budget is exhausted."""


class ConstraintChecker:
    """Compiles each different constraint of one model once and keeps only its error, so that a large file needs little memory."""

    def __init__(
        self, grammars: GrammarCompiler, budget: CompileBudget, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grammars = grammars
        self._budget = budget
        self._clock = clock
        self._errors: dict[bytes, InvalidConstraint | None] = {}

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> None:
        """Compile a constraint like `GrammarCompiler.compile`; raises also BudgetExhausted."""
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
            return InvalidConstraint(str(error), param=error.param)  # without its traceback, which keeps frames alive
        except SandboxUnavailable:
            self._budget.constraints = 0  # the machine's fault, not the constraint's: wait only once
            raise BudgetExhausted from None
        finally:
            self._budget.seconds -= self._clock() - began_at
        return None
