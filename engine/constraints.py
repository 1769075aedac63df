"""Constrained answers: which tokens may come next, so that the text can only become what was asked for.

Knows token ids and llguidance; nothing of prompts, slots or logits. Compiling is for the intake's thread, following an
answer for the loop's:

    compile(constraint) ── size limits ── trial in the warden ── compile here ──> Grammar       (kept, by content)
    Grammar.start() ──> GrammarState: fill_mask → sample → accept, which returns what is forced to follow
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from engine.constraints_matcher import compile_matcher, explain
from engine.constraints_text import grammar_text
from engine.errors import ConstraintFailed, EngineError, InvalidConstraint
from engine.messages import Constraint, ConstraintKind
from engine.warden import Warden

_JSON_KINDS: Final = frozenset({ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA})
_Result = TypeVar("_Result")
# The warden knows bytes only: to it, a mark that is one token is its one control token.
_TOKEN_ID: Final = re.compile(r"<\[\d+\]>")
_ANY_CONTROL: Final = "<[256]>"


class Grammars:
    """The compiled constraints of one model. Any thread may compile, except the one that decodes: it takes milliseconds,
    up to two seconds where a constraint is refused for what it did to the warden.

    `tokenizer` is called once, in a thread of its own (about a second for a vocabulary of 150,000 tokens); `num_vocab` is
    the width of the model's logits. Without `jump_forward` no token is ever forced.
    """

    def __init__(
        self,
        tokenizer: Callable[[], LLTokenizer],
        *,
        num_vocab: int,
        jump_forward: bool = True,
        max_cached: int = 64,
        warden: Warden | None = None,
    ) -> None:
        self._make_tokenizer = tokenizer
        self._num_vocab = num_vocab
        self._jump_forward = jump_forward
        self._warden = warden or Warden()
        self._outcomes = _Recent(max_cached)
        self._compiling = threading.Lock()
        self._starting = threading.Lock()
        self._tokenizer: Future[LLTokenizer] | None = None

    def prepare(self) -> None:
        """Begin what the first `compile` would wait for; returns at once, and does nothing the second time."""
        self._future_tokenizer()
        with self._compiling:
            self._warden.start()

    def compile(self, constraint: Constraint, *, is_ours: bool = False) -> Grammar:
        """The grammar of a constraint, new or kept. Raises InvalidConstraint, also kept, or ConstraintFailed.

        One that is ours was written here around schemas of the caller's, and may be longer than what a caller may write.
        """
        key = hashlib.sha256(f"{constraint.kind}\0{constraint.text}".encode()).digest()
        outcome = self._outcomes.get(key)
        if outcome is None:
            with self._compiling:  # by one thread at a time: there is one warden
                outcome = self._outcomes.get(key) or self._outcomes.put(key, self._outcome(constraint, is_ours))
        if isinstance(outcome, str):
            usual = "response_format" if constraint.kind in _JSON_KINDS else "structured_outputs"
            raise InvalidConstraint(outcome, param=constraint.param or usual)
        return outcome

    def close(self) -> None:
        """End the warden's process."""
        self._warden.close()

    def _outcome(self, constraint: Constraint, is_ours: bool) -> Grammar | str:
        try:
            text = grammar_text(constraint, is_ours=is_ours)
            self._warden.check(_TOKEN_ID.sub(_ANY_CONTROL, text) if is_ours else text)
            return Grammar(self._future_tokenizer().result(), text, jump_forward=self._jump_forward)
        except InvalidConstraint as error:
            return str(error)

    def _future_tokenizer(self) -> Future[LLTokenizer]:
        with self._starting:
            if self._tokenizer is None:
                self._tokenizer = Future()
                threading.Thread(target=self._build, args=(self._tokenizer,), name="grammar-vocabulary").start()
            return self._tokenizer

    def _build(self, future: Future[LLTokenizer]) -> None:
        try:
            tokenizer = self._make_tokenizer()
            if tokenizer.vocab_size != self._num_vocab:
                raise ConstraintFailed(
                    f"The vocabulary has {tokenizer.vocab_size} tokens for constraints and {self._num_vocab} logits."
                )
        except EngineError as error:
            future.set_exception(error)
        except Exception as error:  # whatever it is, constrained requests fail and the others go on
            future.set_exception(ConstraintFailed(f"This model's vocabulary cannot be constrained: {error}"))
        else:
            future.set_result(tokenizer)


class Grammar:
    """A compiled constraint, shared by all answers that follow it.

    llguidance makes its lexer's states when an answer first reaches them. All copies of a matcher share them, and there is
    a limit: a grammar that has many can be used up by its answers, and is then compiled anew.
    """

    def __init__(self, tokenizer: LLTokenizer, text: str, *, jump_forward: bool) -> None:
        self.end_tokens: Final = frozenset(tokenizer.eos_tokens)
        self.jump_forward: Final = jump_forward
        self._tokenizer = tokenizer
        self._text = text
        self._base = compile_matcher(tokenizer, text)

    def start(self, *, jumps: bool = True) -> GrammarState:
        """The state before the first token; without `jumps`, this answer is forced nothing."""
        return GrammarState(self, self._base, jumps=jumps and self.jump_forward)

    def renewed(self, worn: LLMatcher) -> LLMatcher:
        """A matcher whose lexer is not used up as `worn` is: the present one, or a new one for everybody."""
        if self._base is worn:
            self._base = compile_matcher(self._tokenizer, self._text)
        return self._base


class GrammarState:
    """How far one answer has come in its grammar. Owned by the loop's thread.

    Each method raises ConstraintFailed where the grammar cannot go on; the answer must then fail, since nothing would
    hold it any more.
    """

    __slots__ = ("_base", "_grammar", "_is_retried", "_jumps", "_matcher", "_tokens")

    def __init__(self, grammar: Grammar, base: LLMatcher, *, jumps: bool) -> None:
        self._grammar = grammar
        self._jumps = jumps
        self._base = base
        self._matcher = base.deep_copy()
        self._tokens: list[int] = []
        self._is_retried = False

    @property
    def is_finished(self) -> bool:
        """Can nothing but the end follow? A grammar may also be finished at its start."""
        return self._matcher.is_stopped()

    @property
    def end_token(self) -> int:
        """A token that ends the answer."""
        return min(self._grammar.end_tokens)

    @property
    def may_end(self) -> bool:
        """Is what has come so far all that was asked for?"""
        return self._matcher.is_accepting()

    @property
    def error(self) -> str | None:
        """Why this state cannot go on."""
        return explain(self._matcher.get_error()) if self._matcher.is_error() else None

    def fill_mask(self, row: NDArray[np.int32]) -> None:
        """Set bit `token % 32` of word `token // 32` for each token that may come next, end tokens included.

        `row` is contiguous, of (num_vocab + 31) // 32 words.
        """
        assert row.flags.c_contiguous, "a row of a mask"
        pointer, num_bytes = row.ctypes.data, row.nbytes
        self._run(lambda matcher: matcher.unsafe_compute_mask_ptr(pointer, num_bytes))

    def allows(self, token: int) -> bool:
        """May this token come next? Far cheaper than a mask, for a token that was sampled without one."""
        if self.is_finished:
            return token in self._grammar.end_tokens
        return self._run(lambda matcher: matcher.validate_tokens([token])) == 1

    def accept(self, token: int) -> list[int]:
        """Take the next token. Returns those that must follow it, which are taken too."""
        self._take([token])
        return self.jump()

    def jump(self) -> list[int]:
        """Take the tokens that must come next, and return them: at the start, what every answer begins with.

        There may be thousands; the caller cuts them at its own limits, and ends the answer there.
        """
        if not self._jumps:
            return []
        forced = self._run(lambda matcher: matcher.compute_ff_tokens())
        if forced:
            self._take(forced)
        return forced

    def _take(self, tokens: list[int]) -> None:
        self._run(lambda matcher: matcher.consume_tokens(tokens))
        self._tokens += tokens
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise ConstraintFailed("The answer came to a place from which its constraint cannot be met.")

    def _run(self, step: Callable[[LLMatcher], _Result]) -> _Result:
        """A step of the matcher, tried again on a fresh one: the fault may be with answers that shared the old one."""
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
        self._base = self._grammar.renewed(self._base)
        self._matcher = self._base.deep_copy()
        self._matcher.consume_tokens(self._tokens)
        self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise ConstraintFailed(f"The answer could not be held to its constraint: {self.error}")


class _Recent:
    """The outcomes used last: a grammar, or why there is none."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._items: OrderedDict[bytes, Grammar | str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Grammar | str | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: bytes, outcome: Grammar | str) -> Grammar | str:
        with self._lock:
            self._items[key] = outcome
            while len(self._items) > self._max_size:
                self._items.popitem(last=False)
        return outcome
