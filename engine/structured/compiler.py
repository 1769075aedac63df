"""Compiling constraints: size limits, a trial in the sandbox, then the grammar, kept by content.

compile(constraint) -> size limits -> trial in the sandbox -> compile here -> Grammar
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from llguidance import LLTokenizer

from engine.errors import ConstraintFailed, EngineError, InvalidConstraint
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.grammar import Grammar
from engine.structured.schema import grammar_text
from engine.types import Constraint, ConstraintKind

_JSON_KINDS: Final = frozenset({ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA})
# The warden knows bytes only: to it, a mark that is one token is its one control token.
_TOKEN_ID: Final = re.compile(r"<\[\d+\]>")
_ANY_CONTROL: Final = "<[256]>"


class GrammarCompiler:
    """The compiled constraints of one model. Any thread may compile, except the one that decodes: it takes milliseconds,
    up to two seconds where a constraint is refused for what it did to the sandbox.

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
        sandbox: CompileSandbox | None = None,
    ) -> None:
        self._make_tokenizer = tokenizer
        self._num_vocab = num_vocab
        self._jump_forward = jump_forward
        self._sandbox = sandbox or CompileSandbox()
        self._outcomes = _Recent(max_cached)
        self._compiling = threading.Lock()
        self._starting = threading.Lock()
        self._tokenizer: Future[LLTokenizer] | None = None

    def prepare(self) -> None:
        """Begin what the first `compile` would wait for; returns at once, and does nothing the second time."""
        self._future_tokenizer()
        with self._compiling:
            self._sandbox.start()

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> Grammar:
        """The grammar of a constraint, new or kept. Raises InvalidConstraint, also kept, or ConstraintFailed.

        One that is ours was written here around schemas of the caller's, and may be longer than what a caller may write.
        """
        key = hashlib.sha256(f"{constraint.kind}\0{constraint.text}".encode()).digest()
        outcome = self._outcomes.get(key)
        if outcome is None:
            with self._compiling:  # by one thread at a time: there is one warden
                outcome = self._outcomes.get(key) or self._outcomes.put(key, self._outcome(constraint, is_internal))
        if isinstance(outcome, str):
            usual = "response_format" if constraint.kind in _JSON_KINDS else "structured_outputs"
            raise InvalidConstraint(outcome, param=constraint.param or usual)
        return outcome

    def close(self) -> None:
        """End the warden's process."""
        self._sandbox.close()

    def _outcome(self, constraint: Constraint, is_internal: bool) -> Grammar | str:
        try:
            text = grammar_text(constraint, is_internal=is_internal)
            self._sandbox.check(_TOKEN_ID.sub(_ANY_CONTROL, text) if is_internal else text)
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
