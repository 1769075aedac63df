"""Grammar compiler: check a constraint's size, compile it in the sandbox, then in this process, and cache the grammar."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from llguidance import LLTokenizer

from engine.errors import ConstraintFailed, EngineError, InvalidConstraint
from engine.structured.bounds import Bounds, BoundTokens
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.grammar import Grammar
from engine.structured.schema import grammar_text
from engine.types import Constraint, ConstraintKind

_JSON_KINDS: Final = frozenset({ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA})
# The sandbox has a vocabulary of bytes and one control token, which stands for every token id of an internal grammar.
_TOKEN_ID: Final = re.compile(r"<\[\d+\]>")
_ANY_CONTROL: Final = "<[256]>"


class GrammarCompiler:
    """Compiles and caches the constraints of one model. Any thread may call `compile`, except the one that decodes: it takes
    milliseconds, and up to two seconds for a constraint that hangs or crashes the sandbox.

    `tokenizer` is called once, in its own thread (about a second for a vocabulary of 150,000 tokens). `num_vocab` is the
    width of the model's logits. Without `jump_forward` no token is forced.
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
        self._outcomes = _LruCache(max_cached)
        self._compiling = threading.Lock()
        self._vocabulary: Future[_Vocabulary] | None = None

    def prepare(self) -> None:
        """Start the tokenizer, which the first `compile` waits for. Returns at once; idempotent."""
        with self._compiling:
            self._future_vocabulary()

    def compile(self, constraint: Constraint, *, is_internal: bool = False) -> Grammar:
        """Return the grammar of a constraint, compiled or cached. Raises InvalidConstraint, also cached, or ConstraintFailed.

        An internal constraint is a grammar written by the engine around schemas of a request, and has a higher size limit.
        """
        key = hashlib.sha256(f"{constraint.kind}\0{constraint.text}".encode()).digest()
        outcome = self._outcomes.get(key)
        if outcome is None:
            with self._compiling:  # one thread at a time: there is one sandbox
                outcome = self._outcomes.get(key) or self._outcomes.put(key, self._outcome(constraint, is_internal))
        if isinstance(outcome, str):
            usual_param = "response_format" if constraint.kind in _JSON_KINDS else "structured_outputs"
            raise InvalidConstraint(outcome, param=constraint.param or usual_param)
        return outcome

    def close(self) -> None:
        """Stop the sandbox."""
        self._sandbox.close()

    def _outcome(self, constraint: Constraint, is_internal: bool) -> Grammar | str:
        try:
            text = grammar_text(constraint, is_internal=is_internal)
            self._sandbox.check(_TOKEN_ID.sub(_ANY_CONTROL, text) if is_internal else text)
            vocabulary = self._future_vocabulary().result()
            is_bounded = constraint.kind in _JSON_KINDS or "%json" in constraint.text
            bounds = (
                Bounds(vocabulary.bound_tokens, constraint.thought_end)
                if is_bounded and vocabulary.bound_tokens.are_complete
                else None
            )
            return Grammar(vocabulary.tokenizer, text, jump_forward=self._jump_forward, bounds=bounds)
        except InvalidConstraint as error:
            return str(error)

    def _future_vocabulary(self) -> Future[_Vocabulary]:
        """Start to build the vocabulary, the first time. Called under the lock."""
        if self._vocabulary is None:
            pool = ThreadPoolExecutor(1, "grammar-vocabulary")
            self._vocabulary = pool.submit(self._build_vocabulary)
            pool.shutdown(wait=False)
        return self._vocabulary

    def _build_vocabulary(self) -> _Vocabulary:
        try:
            tokenizer = self._make_tokenizer()
        except EngineError:
            raise
        except Exception as error:  # constrained requests fail, all others go on
            raise ConstraintFailed(f"This model's vocabulary cannot be constrained: {error}") from error
        if tokenizer.vocab_size != self._num_vocab:
            raise ConstraintFailed(
                f"The vocabulary has {tokenizer.vocab_size} tokens for constraints and {self._num_vocab} logits."
            )
        return _Vocabulary(tokenizer, BoundTokens(tokenizer))


class _Vocabulary(NamedTuple):
    """A model's vocabulary as grammars need it."""

    tokenizer: LLTokenizer
    bound_tokens: BoundTokens


class _LruCache:
    """LRU cache of outcomes: a grammar or an error message."""

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
