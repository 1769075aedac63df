"""Parts of libraries that are not public, and that this project uses.

Each test names the files to look at when it fails. The upper pins of these libraries in pyproject.toml move only with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import llama_cpp as llama
import llguidance
import numpy as np
from celery.concurrency import thread
from celery.worker import state as celery_state
from kombu.transport import TRANSPORT_ALIASES, redis
from llama_cpp._ggml import libggml
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from engine.backends.fake.tokenizer import fake_grammar_tokenizer
from tests.support.constrain import TOKENIZER


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


async def test_the_http_protocol_of_uvicorn_is_as_its_limits_expect() -> None:
    """The limits override these methods and read these attributes."""
    look = "uvicorn's HttpToolsProtocol has changed: read api/http/connection_limits.py against it"
    expected = {
        "connection_made": ["self", "transport"],
        "connection_lost": ["self", "exc"],
        "data_received": ["self", "data"],
        "on_message_begin": ["self"],
        "on_headers_complete": ["self"],
        "on_message_complete": ["self"],
        "on_response_complete": ["self"],
        "send_400_response": ["self", "msg"],
        "pause_writing": ["self"],
        "resume_writing": ["self"],
    }
    assert {name: parameters(getattr(HttpToolsProtocol, name)) for name in expected} == expected, look

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Never called."""

    config = Config(app)
    config.load()
    protocol = HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    assert {"app", "connections", "cycle", "loop", "transport"} <= vars(protocol).keys(), look
    assert isinstance(protocol.connections, set), look
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.more_body = True" in cycle, look
    assert "self.response_complete = False" in cycle, look
    assert STATUS_LINE[408].startswith(b"HTTP/1.1 408 "), look


def test_the_redis_transport_of_kombu_reads_messages_in_one_method() -> None:
    """The transport of core/queue drops a malformed message where `_brpop_read` raises."""
    look = "kombu's Redis transport has changed: read core/queue/redis_transport.py against it"
    assert parameters(redis.Channel._brpop_read) == ["self", "options"], look
    source = inspect.getsource(redis.Channel._brpop_read)
    assert "loads(bytes_to_str(item))" in source, look
    assert "_deliver(" in source, look
    assert "'BRPOP': self._brpop_read" in inspect.getsource(redis.Channel.__init__), look
    assert redis.Transport.Channel is redis.Channel, look
    assert {"redis", "rediss"} <= TRANSPORT_ALIASES.keys(), look
    registers = inspect.getsource(redis.Transport.register_with_event_loop)
    assert (
        "cycle._binding_expiry_tref = loop.call_repeatedly(\n            1, cycle.maybe_refresh_binding_expiry"
        in registers
    ), look
    assert "cycle._restore_messages_tref = loop.call_repeatedly(" in registers, look


def test_the_thread_pool_of_celery_returns_its_future() -> None:
    """The pool of the consumers adds a callback to the future of each task."""
    look = "celery's thread pool has changed: read workers/consumers/celery_pool.py against it"
    pool = thread.TaskPool(limit=1)
    result = pool.on_apply(lambda: 1, callback=lambda _: None)
    assert callable(result.f.add_done_callback), look
    result.wait(10)
    pool.on_stop()
    assert callable(thread.TaskPool.register_with_event_loop), look


def test_celery_stops_taking_tasks_when_its_state_says_so() -> None:
    """The graceful shutdown sets `should_stop` to an exit code; False means: do not stop."""
    look = "celery.worker.state has changed: read workers/consumers/shutdown.py against it"
    assert hasattr(celery_state, "should_stop"), look
    source = inspect.getsource(celery_state.maybe_shutdown)
    assert "should_stop is not None and should_stop is not False" in source, look


def test_llama_cpp_shows_the_libraries_that_have_no_bindings() -> None:
    look = "llama_cpp's libraries have moved: read engine/backends/llama/memory.py and grammar.py against them"
    assert isinstance(libggml, ctypes.CDLL), look
    assert libggml.ggml_backend_dev_by_type, look
    assert libggml.ggml_backend_dev_memory, look
    assert ctypes.cast(llama.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value, look


def test_llguidance_writes_a_mask_to_a_pointer() -> None:
    """`GrammarState.fill_mask` gives the address and the size of a row of words."""
    look = "llguidance's unsafe_compute_mask_ptr has changed: read engine/structured/grammar.py against it"
    grammar = llguidance.LLMatcher.grammar_from_regex("a")
    matcher = llguidance.LLMatcher(fake_grammar_tokenizer(TOKENIZER), grammar)
    words = (TOKENIZER.num_vocab + 31) // 32
    row = np.zeros(words + 1, np.int32)
    matcher.unsafe_compute_mask_ptr(row.ctypes.data, words * 4)
    allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    assert allowed == TOKENIZER.encode("a", special=False, add_bos=False), look
    assert hasattr(llguidance.LLTokenizer, "from_llamacpp"), look


def test_connections_of_redis_write_commands_in_one_method() -> None:
    """The client of the api overrides it, and takes the pool's connection class as a base."""
    look = "redis-py's asyncio connections have changed: read api/services/redis_client.py against them"
    assert parameters(AbstractConnection.send_packed_command) == ["self", "command", "check_health"], look
    assert inspect.iscoroutinefunction(AbstractConnection.send_packed_command), look
    assert parameters(Retry.call_with_retry)[:3] == ["self", "do", "fail"], look
    pool = Redis.from_url("redis://127.0.0.1:1").connection_pool
    assert issubclass(pool.connection_class, AbstractConnection), look
