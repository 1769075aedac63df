"""Compiled grammars, and the state of an answer in its grammar, which decides the allowed next tokens.

Grammar.start() -> GrammarState: fill_mask -> sample -> accept, which returns the tokens that are forced to follow
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from engine.errors import ConstraintFailed
from engine.structured.bitmask import scratch_mask
from engine.structured.bounds import Bounds, is_allowed
from engine.structured.matcher import compile_matcher, explain

_Result = TypeVar("_Result")


class Grammar:
    """A compiled constraint, shared by all answers that follow it.

    llguidance creates a lexer state when an answer first reaches it. All copies of a matcher share these states, up to a
    limit. Answers can exhaust a grammar with many states, which is then compiled again.
    """

    def __init__(self, tokenizer: LLTokenizer, text: str, *, jump_forward: bool, bounds: Bounds | None = None) -> None:
        self.end_tokens: Final = frozenset(tokenizer.eos_tokens)
        self.jump_forward: Final = jump_forward
        self.bounds: Final = bounds
        self.num_vocab: Final = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._text = text
        self._base = compile_matcher(tokenizer, text)

    def start(self, *, jumps: bool = True) -> GrammarState:
        """Return the state before the first token. Without `jumps` no token of this answer is forced."""
        return GrammarState(self, self._base, jumps=jumps and self.jump_forward)

    def recompiled(self, exhausted: LLMatcher) -> LLMatcher:
        """Replace an exhausted matcher, unless another answer has replaced it already; return the current one."""
        if self._base is exhausted:
            self._base = compile_matcher(self._tokenizer, self._text)
        return self._base


class GrammarState:
    """Progress of one answer in its grammar. Owned by the loop's thread.

    Each method raises ConstraintFailed if the grammar cannot go on. The answer must then fail, since it would no longer be
    constrained.
    """

    __slots__ = ("_base", "_bounds", "_grammar", "_is_retried", "_jumps", "_matcher", "_tokens")

    def __init__(self, grammar: Grammar, base: LLMatcher, *, jumps: bool) -> None:
        self._grammar = grammar
        self._jumps = jumps
        self._base = base
        self._matcher = base.deep_copy()
        self._tokens: list[int] = []
        self._bounds = copy.copy(grammar.bounds)
        self._is_retried = False

    @property
    def is_finished(self) -> bool:
        """Is the end the only possible continuation? That may already hold at the start."""
        return self._matcher.is_stopped()

    @property
    def end_token(self) -> int:
        """The smallest token that ends the answer."""
        return min(self._grammar.end_tokens)

    @property
    def error(self) -> str | None:
        """Reason why this state cannot go on; None if it can."""
        return explain(self._matcher.get_error()) if self._matcher.is_error() else None

    def fill_mask(self, row: NDArray[np.int32]) -> None:
        """Set bit `token % 32` of word `token // 32` for each allowed next token, end tokens included.

        `row` is contiguous, of (num_vocab + 31) // 32 words.
        """
        assert row.flags.c_contiguous, "a row of a mask"
        pointer, num_bytes = row.ctypes.data, row.nbytes
        self._run(lambda matcher: matcher.unsafe_compute_mask_ptr(pointer, num_bytes))
        if self._bounds is not None and self._bounds.may_forbid():
            self._bounds.narrow(row)

    def allows(self, token: int) -> bool:
        """Is this token allowed next? Far cheaper than a mask; used for a token that was sampled without one."""
        if self.is_finished:
            return token in self._grammar.end_tokens
        if self._run(lambda matcher: matcher.validate_tokens([token])) != 1:
            return False
        if self._bounds is None or not self._bounds.may_forbid(token):
            return True
        mask = scratch_mask(self._grammar.num_vocab)
        self.fill_mask(mask)
        return is_allowed(mask, token)

    def accept(self, token: int) -> list[int]:
        """Advance by one token and by the tokens that must follow it, which are returned."""
        self._consume([token])
        return self.jump()

    def jump(self) -> list[int]:
        """Advance by the tokens that must come next, and return them. At the start every answer begins with them.

        There may be thousands; the scheduler cuts them at the answer's limits.
        """
        if not self._jumps:
            return []
        forced = self._run(lambda matcher: matcher.compute_ff_tokens())
        if forced:
            self._consume(forced)
        return forced

    def _consume(self, tokens: list[int]) -> None:
        self._run(lambda matcher: matcher.consume_tokens(tokens))
        self._tokens += tokens
        if self._bounds is not None:
            self._bounds.consume(tokens, self._tokens)
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise ConstraintFailed("The answer reached a point from which its constraint cannot be met.")

    def _run(self, step: Callable[[LLMatcher], _Result]) -> _Result:
        """Run a step of the matcher; after an error, again on a fresh one, since other answers may have exhausted the old one."""
        result = step(self._matcher)
        if self._matcher.is_error():
            self._retry()
            result = step(self._matcher)
            self._check()
        return result

    def _retry(self) -> None:
        if self._is_retried:
            self._check()
        self._is_retried = True
        self._base = self._grammar.recompiled(self._base)
        self._matcher = self._base.deep_copy()
        self._matcher.consume_tokens(self._tokens)
        self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise ConstraintFailed(f"The answer could not follow its constraint: {self.error}")
