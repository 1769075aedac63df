"""Admins load, unload, reload and pin models from the command line while a stack runs: three models, of which two fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.command import Terminal
from tests.support.stack import StackProcess, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FAKE = "name: {name}\nbackend: fake # of a test\nslots: 2\nload: lazy\nload_seconds: 0.3\nmemory_bytes: {size}\n"


class Machine:
    """A stack, its models folder and a terminal."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self.models.mkdir()
        for name in ("lab/a", "b", "c"):
            self.write(name, "100MiB")
        self.write("vast", "300MiB")
        self.stack = StackProcess(folder, self.models, MILLRACE_DEVICE_MEMORY="200MiB")
        self.stack.start()
        self.terminal = Terminal(folder, self.stack)

    def write(self, name: str, size: str) -> None:
        (self.models / f"{name.replace('/', '-')}.yaml").write_text(FAKE.format(name=name, size=size))

    def states(self) -> dict[str, str]:
        return {each["id"]: each["status"] for each in self.terminal.json("models", "list") if each["id"] != "vast"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("control"))
    yield made
    made.stack.close()


def test_models_are_loaded_unloaded_and_reloaded_by_name(machine: Machine) -> None:
    assert machine.terminal.ask("models", "load", "lab/a", "--wait") == "lab/a: ready\n"
    assert machine.terminal.json("models", "load", "b", "--wait")["status"] == "ready"
    assert "c: ready" in machine.terminal.ask("models", "load", "c", "--wait")
    assert sorted(machine.states().values()) == ["ready", "ready", "unloaded"], "one has left for c"
    assert machine.terminal.ask("models", "unload", "c", "--wait") == "c: unloaded\n"
    assert machine.terminal.ask("models", "reload", "b", "--wait") == "b: ready\n"
    with machine.stack.client() as client:
        messages = [{"role": "user", "content": "hello"}]
        assert client.chat.completions.create(model="c", messages=messages, max_tokens=2).choices  # type: ignore[arg-type]


def test_a_load_that_cannot_be_done_gives_the_reason_in_words(machine: Machine) -> None:
    vast = machine.terminal.run("models", "load", "vast", "--wait")
    assert vast.returncode == 1
    assert "it needs 300 MiB of memory, and cpu has 200 MiB for models" in vast.stderr
    unknown = machine.terminal.run("models", "load", "lab/b")
    assert unknown.returncode == 1
    assert "404" in unknown.stderr


def test_a_pinned_model_is_loaded_by_a_running_server_and_not_unloaded(machine: Machine) -> None:
    path = machine.models / "lab-a.yaml"
    said = machine.terminal.run("models", "pin", "lab/a", "--models-dir", str(machine.models))
    assert said.stderr == "load is now eager, since a pinned model is loaded at the start.\n"
    assert "backend: fake # of a test" in path.read_text()
    wait_for(lambda: machine.states()["lab/a"] == "ready", "the pinned model is loaded")
    refused = machine.terminal.run("models", "unload", "lab/a")
    assert refused.returncode == 1
    assert "is pinned" in refused.stderr
    for name in ("b", "c", "b"):
        machine.terminal.ask("models", "load", name, "--wait")
        assert machine.states()["lab/a"] == "ready"
    machine.terminal.ask("models", "unpin", "lab/a", "--models-dir", str(machine.models))
    wait_for(
        lambda: "unloaded" in machine.terminal.ask("models", "unload", "lab/a", "--wait"), "it is not pinned any more"
    )


def test_a_pin_over_http_keeps_a_model_in_memory_without_its_file(machine: Machine) -> None:
    with httpx2.Client(base_url=machine.stack.url, timeout=30) as http:
        assert http.post("/v1/models/c/pin").json()["pinned"] is True
        wait_for(lambda: machine.states()["c"] == "ready", "the pinned model is loaded")
        assert http.post("/v1/models/c/unload").status_code == 409
        for name in ("lab/a", "b", "lab/a"):
            machine.terminal.ask("models", "load", name, "--wait")
            assert machine.states()["c"] == "ready"
        assert http.post("/v1/models/c/unpin").json()["pinned"] is False
        assert http.post("/v1/models/c/unload").status_code == 202
        wait_for(lambda: machine.states()["c"] == "unloaded", "it leaves")
