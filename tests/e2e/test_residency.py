"""Models that are loaded and unloaded while a stack runs: four fake models, of which two fit into memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FAKE = "name: {name}\nbackend: fake\nslots: 4\nstep_seconds: 0.002\nmemory_bytes: 100MiB\nload_seconds: 0.1\n"
SETTINGS = {
    "MILLRACE_DEVICE_MEMORY": "cpu=200MiB",
    "MILLRACE_RESIDENCE_SECONDS": "0.5",
    "MILLRACE_RESIDENCE_LOADS": "0.1",
    "MILLRACE_SHARD_LINES": "16",
}


def write(folder: Path, name: str, more: str = "") -> None:
    """Write a model file as an editor does: as a whole."""
    part = folder / f"{name}.part"
    part.write_text(FAKE.format(name=name) + more)
    part.rename(folder / f"{name}.yaml")


class Zoo:
    """A stack and its models folder."""

    def __init__(self, folder: Path, models: dict[str, str], **settings: str) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.models.mkdir()
        for name, more in models.items():
            write(self.models, name, more)
        self.stack = StackProcess(folder, self.models, **{**SETTINGS, **settings})

    def chat(self, model: str, text: str = "hi", **more: Any) -> str:
        answer = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], **{"max_tokens": 4, **more}
        )
        return str(answer.choices[0].message.content)

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.stack.url}/v1", api_key="any", max_retries=0, timeout=60)

    def close(self) -> None:
        self.client.close()
        self.stack.close()

    def states(self) -> dict[str, str]:
        listed = httpx2.get(f"{self.stack.url}/v1/models", timeout=30).json()["data"]
        return {each["id"]: each["status"] for each in listed}

    def in_memory(self) -> set[str]:
        return {name for name, state in self.states().items() if state == "ready"}

    def count(self, counter: str, model: str) -> int:
        for line in self.stack.metrics().splitlines():
            if line.startswith(f'millrace_{counter}_total{{model="{model}"}}'):
                return int(float(line.rpartition(" ")[2]))
        return 0

    def start_batch(self, model: str, lines: int, **body: Any) -> str:
        path = write_lines(self.folder / f"{model}.jsonl", batch_lines(lines, model, **body))
        return start_batch(self.client, path)

    def finish(self, batch_id: str, lines: int) -> list[dict[str, Any]]:
        """Wait for the end of a batch, and return its output: each line once."""
        wait_for(lambda: self.client.batches.retrieve(batch_id).status == "completed", "the batch has ended", 60)
        batch = self.client.batches.retrieve(batch_id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (lines, 0)
        results: list[dict[str, Any]] = result_lines(self.client, batch.output_file_id)
        assert sorted(each["custom_id"] for each in results) == sorted(f"line-{number}" for number in range(lines))
        return results

    def crashes(self) -> list[str]:
        """What the launcher logged of engines that ended without being stopped."""
        log = (self.stack.state_dir / "logs" / "worker.log").read_text()
        return [line for line in log.splitlines() if "child_exited" in line]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    folder = tmp_path_factory.mktemp("zoo")
    made = Zoo(folder, {"a": "", "b": "", "c": "", "d": "load: lazy\n"})
    made.stack.start()
    yield made
    made.close()


def test_a_model_that_is_not_in_memory_loads_for_a_chat_and_the_idle_one_leaves(zoo: Zoo) -> None:
    assert zoo.in_memory() == {"a", "b"}, "the eager models in order, while memory lasts"
    assert httpx2.get(f"{zoo.stack.url}/readyz").status_code == 200
    assert zoo.chat("d")
    wait_for(lambda: "d" in zoo.in_memory() and len(zoo.in_memory()) == 2, "another model has left")
    assert zoo.states()["c"] == "unloaded"
    wait_for(lambda: zoo.count("model_unloads", "a") + zoo.count("model_unloads", "b") == 1, "it is counted")
    assert zoo.crashes() == [], "an engine that is stopped does not crash"


def test_a_batch_gives_way_to_a_chat_and_is_finished_later(zoo: Zoo) -> None:
    zoo.chat("a")
    first = zoo.start_batch("b", 200, max_tokens=60)
    second = zoo.start_batch("c", 200, max_tokens=60)
    wait_for(lambda: zoo.in_memory() == {"b", "c"}, "both batches have their models")
    began = time.monotonic()
    zoo.chat("a")
    zoo.chat("d")
    assert time.monotonic() - began < 30
    zoo.finish(first, 200)
    zoo.finish(second, 200)
    assert zoo.crashes() == []


def test_files_are_added_changed_and_removed_under_load(zoo: Zoo) -> None:
    wrong: list[Exception] = []
    is_over = threading.Event()

    def chat_on() -> None:
        while not is_over.is_set():
            try:
                zoo.chat("a", max_tokens=20)
            except openai.APIError as error:
                wrong.append(error)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(chat_on)
        try:
            write(zoo.models, "new")
            wait_for(lambda: "new" in zoo.states(), "the model is listed")
            zoo.chat("new")
            before = zoo.count("model_loads", "a")
            write(zoo.models, "a", "stopwords: [mill]\n")
            wait_for(lambda: zoo.count("model_loads", "a") > before, "it is loaded with the new keys")
            wait_for(lambda: "mill" not in zoo.chat("a", max_tokens=200), "the new keys count")
            os.kill(zoo.stack.pid, signal.SIGHUP)
            (zoo.models / "new.yaml").unlink()
            wait_for(lambda: "new" not in zoo.states(), "the model is gone")
            with pytest.raises(openai.NotFoundError):
                zoo.chat("new")
        finally:
            is_over.set()
    assert wrong == [], "the chats of the other model were not disturbed"
    assert zoo.crashes() == []


def test_a_model_that_cannot_be_loaded_fails_its_callers_with_the_reason(zoo: Zoo) -> None:
    (zoo.models / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    (zoo.models / "broken.yaml").write_text("name: broken\nparameters: {model: broken.gguf}\nload: lazy\n")
    wait_for(lambda: "broken" in zoo.states(), "the model is listed")
    with ThreadPoolExecutor(3) as threads:
        failed = [threads.submit(zoo.chat, "broken", stream=stream) for stream in (False, False, False)]
        errors = [each.exception(60) for each in failed]
    for error in errors:
        assert isinstance(error, openai.InternalServerError)
        assert error.code == "model_not_ready"
        assert "broken.gguf is not a model that llama.cpp can load" in error.message
    wait_for(lambda: zoo.states()["broken"] == "failed", "the worker has reported it")
    zoo.chat("a")
    write(zoo.models, "huge", "load: lazy\n")
    (zoo.models / "huge.yaml").write_text((zoo.models / "huge.yaml").read_text().replace("100MiB", "300MiB"))
    wait_for(lambda: zoo.states().get("huge") == "failed", "it is refused")
    with pytest.raises(openai.InternalServerError, match="needs 300 MiB of memory, and cpu has 200 MiB for models"):
        zoo.chat("huge")
    for name in ("broken.yaml", "broken.gguf", "huge.yaml"):
        (zoo.models / name).unlink()


def test_a_stream_that_waits_for_a_load_is_kept_alive(zoo: Zoo) -> None:
    write(zoo.models, "slow", "load: lazy\n")
    text = (zoo.models / "slow.yaml").read_text().replace("load_seconds: 0.1", "load_seconds: 1.5")
    (zoo.models / "slow.yaml").write_text(text)
    wait_for(lambda: zoo.states().get("slow") == "unloaded", "the model is listed")
    body = {"model": "slow", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "x"}]}
    with httpx2.stream("POST", f"{zoo.stack.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0].startswith(":"), "a comment comes before the model is loaded"
    assert lines[-1] == "data: [DONE]"
    (zoo.models / "slow.yaml").unlink()


@pytest.mark.parametrize(
    "words",
    [
        ("-m workers",),
        ("workers.consumers.main chat",),
        ("workers.consumers.main batch",),
        ("engine.process.server", '"model":"c"'),
        ("valkey-server",),  # its consumers connect again, and read the queues of models that came meanwhile
    ],
)
def test_a_process_is_killed_while_a_model_loads_and_its_work_is_done(zoo: Zoo, words: tuple[str, ...]) -> None:
    zoo.chat("a")
    batch = zoo.start_batch("b", 40, max_tokens=30)
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(_until_answered, lambda: zoo.chat("c", max_tokens=5))
        wait_for(lambda: zoo.stack.find("engine.process.server", '"model":"c"') is not None, "the model loads", 30)
        zoo.stack.find(*words).kill()
        assert done.result(60)
    zoo.finish(batch, 40)


def _until_answered(chat: Callable[[], str]) -> str:
    """The answer, also if the chat has to be sent again: its engine may have been killed while it ran."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return chat()
        except openai.APIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_an_unused_model_leaves_after_its_keep_alive_and_a_pinned_one_stays(zoo: Zoo) -> None:
    write(zoo.models, "short", "load: lazy\nkeep_alive_seconds: 2\n")
    write(zoo.models, "pin", "pinned: true\n")
    wait_for(lambda: zoo.states().get("pin") == "ready", "a pinned model is loaded without a request", 30)
    for name in ("c", "d", "short"):
        zoo.chat(name)
        assert zoo.states()["pin"] == "ready"
    wait_for(lambda: zoo.in_memory() == {"pin"}, "the model that nothing uses has left", 30)
    for name in ("short", "pin"):
        (zoo.models / f"{name}.yaml").unlink()
