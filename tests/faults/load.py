"""Work for a stack under faults, with expected responses: the fake model's output depends on the prompt alone.

Every prompt contains MARKER, so that a prompt in a log is found.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import openai
from openai import OpenAI

from core import ids
from tests.support.engine import Bench
from tests.support.stack import wait_for

_Result = TypeVar("_Result")


class Served(Protocol):
    """A stack or a fleet under load."""

    @property
    def client(self) -> OpenAI:
        """The official client, without retries of its own."""

    def retry(self, action: Callable[[], _Result], timeout_seconds: float = ..., /) -> _Result:
        """Repeat a request after a broken connection or stream, a 5xx or a 429, until the time-out."""

    def execute(self, statement: str, **values: object) -> None:
        """Change rows."""


MARKER: Final = "xyzzy-prompts-are-private"
FINAL: Final = ("completed", "failed", "expired", "cancelled")

_bench: Final = Bench()
_asking: Final = threading.Lock()  # the fake engine runs in one thread
_numbers: Final = itertools.count()


@cache
def expected_answer(prompt: str) -> str:
    """Return the fake model's complete response to a chat of this one message."""
    with _asking:
        return _bench.ask(prompt).choices[0].text


def new_prompt() -> str:
    """Return a prompt that was not used before."""
    return f"{MARKER} question {next(_numbers)}?"


def chat_body(prompt: str, **more: object) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": "fake", "messages": [{"role": "user", "content": prompt}]} | more


def batch_content(num_lines: int, **more: object) -> bytes:
    """Return a batch input file with new prompts."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": chat_body(new_prompt(), **more),
        }
        for number in range(num_lines)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def upload(stack: Served, content: bytes) -> str:
    """Store a batch input file; return its id."""
    file = stack.retry(lambda: stack.client.files.create(file=("in.jsonl", content), purpose="batch"))
    return file.id


def create_batch(stack: Served, file_id: str, **more: Any) -> str:
    """Create a batch of a stored file, once however often the request is repeated; return its id."""
    headers = {"Idempotency-Key": ids.new_id("once_")}
    endpoint, window = "/v1/chat/completions", "24h"

    def create() -> str:
        return stack.client.batches.create(
            input_file_id=file_id, endpoint=endpoint, completion_window=window, extra_headers=headers, **more  # type: ignore[arg-type]
        ).id  # fmt: skip

    return retry_with_key(stack, create)


def retry_with_key(stack: Served, create: Any) -> Any:
    """Repeat while an earlier attempt holds the key: the key of a process that died stays locked for two minutes."""

    def unlocked() -> Any:
        try:
            return create()
        except openai.ConflictError:
            expire_idempotency_locks(stack)
            return create()

    return stack.retry(unlocked)


def expire_idempotency_locks(stack: Served) -> None:
    """Expire the locks of all Idempotency-Keys, as time would."""
    stack.execute("UPDATE idempotency_keys SET locked_until = now() WHERE finished_at IS NULL")


def start_batch(stack: Served, num_lines: int, **more: object) -> str:
    """Upload a file and create a batch; return its id."""
    return create_batch(stack, upload(stack, batch_content(num_lines, **more)))


def wait_batch(stack: Served, batch_id: str, *statuses: str, timeout_seconds: float = 60) -> str:
    """Wait until the batch has one of these statuses, by default any final one; return it."""
    wanted = statuses or FINAL

    def status() -> str:
        return str(stack.client.batches.retrieve(batch_id).status)

    wait_for(lambda: status() in wanted, f"{batch_id} is {' or '.join(wanted)}", timeout_seconds)
    return stack.retry(status)


def ask(stack: Served, prompt: str, **more: object) -> str:
    """Return the response to one chat without streaming."""
    answer = stack.client.chat.completions.create(**chat_body(prompt, **more))
    return str(answer.choices[0].message.content)


def stream_chat(stack: Served, prompt: str, **more: object) -> list[str]:
    """Return the pieces of one streamed chat."""
    with stack.client.chat.completions.create(**chat_body(prompt, stream=True, **more)) as stream:
        return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def check_everyday(stack: Served, timeout_seconds: float = 30) -> None:
    """Check that a batch and a streamed chat succeed within this time."""
    batch_id, prompt = start_batch(stack, 2), new_prompt()
    assert "".join(stack.retry(lambda: stream_chat(stack, prompt), timeout_seconds)) == expected_answer(prompt)
    assert wait_batch(stack, batch_id, timeout_seconds=timeout_seconds) == "completed"


class Chats:
    """Chats one after the other, from several threads, until the block ends. Each gets its response or a clear error.

    `ends` counts `answered`, `refused` (an error with a code, before or in the stream) and `cut` (a broken connection).
    With `injects_errors` a failpoint may raise in the api: a 500 without a code is a refusal too.
    """

    def __init__(self, stack: Served, threads: int = 2, *, injects_errors: bool = False) -> None:
        self._stack = stack
        self._injects_errors = injects_errors
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n % 2 == 0,), daemon=True) for n in range(threads)]
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest_seconds = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a chat did not end"
        if kind is None:
            assert not self.wrong, self.wrong[:3]

    def _run(self, is_stream: bool) -> None:
        while not self._stop.is_set():
            prompt, began = new_prompt(), time.monotonic()
            try:
                text = "".join(stream_chat(self._stack, prompt)) if is_stream else ask(self._stack, prompt)
            except openai.APIError as error:
                self._failed(error)
            except Exception as error:  # the SDK has no error of its own for a broken stream
                self.ends["cut"] += 1
                if not isinstance(error, OSError) and "httpx" not in type(error).__module__:
                    self.wrong.append(repr(error))
            else:
                self.ends["answered"] += 1
                if text != expected_answer(prompt):
                    self.wrong.append(f"{prompt!r} was answered {text!r}")
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    def _failed(self, error: openai.APIError) -> None:
        is_cut = isinstance(error, openai.APIConnectionError)
        self.ends["cut" if is_cut else "refused"] += 1
        is_injected = self._injects_errors and isinstance(error, openai.InternalServerError)
        if not is_cut and not error.code and not is_injected:
            self.wrong.append(f"an error without a code: {error!r}")
        self._stop.wait(0.05)
