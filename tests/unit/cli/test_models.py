"""`millrace models` on the files of a folder, where no server runs."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.errors import CommandFailed, ExitCode
from cli.main import app
from tests.support.command import MILLRACE
from tests.support.gguf_bytes import gguf, tensor
from tests.support.model_files import write_model
from tests.support.stack import clean_environment

Run = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    folder = {"MILLRACE_MODELS_DIR": str(tmp_path / "models"), "MILLRACE_STATE_DIR": str(tmp_path / "state")}
    return {"MILLRACE_PORT": str(port), **folder}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Runs a verb of `millrace models`, which ends without an error unless it is wanted."""

    def run(*arguments: str, fails: bool = False) -> Result:
        done = CliRunner().invoke(app, ["models", *arguments], env=environment)
        assert (done.exception is not None) is fails, (done.output, done.exception)
        return done

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def error(done: Result) -> CommandFailed:
    assert isinstance(done.exception, CommandFailed)
    return done.exception


def weights(path: Path, **keys: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gguf({"general.architecture": "b", **keys}, [tensor("t", [32])], data=128))
    return path


def llama(folder: Path, name: str, model: object, **keys: object) -> Path:
    return write_model(folder, name, backend="llama", parameters=f"{{model: '{model}'}}", **keys)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def removal(done: Result) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_without_a_server_the_files_of_the_folder_are_listed(run: Run, folder: Path) -> None:
    write_model(folder, "one", aliases="[first]", context_size=4096)
    weights(folder / "two.gguf")
    (folder / "bad.yaml").write_text("name: [")
    done = run("list")
    heading, *rows = (line.split() for line in done.stdout.splitlines())
    assert heading == ["NAME", "STATUS", "BACKEND", "DEVICE", "MEMORY", "CONTEXT", "SLOTS", "ENDPOINTS", "ALIASES"]
    one, two = (row[:7] for row in rows)
    assert one == ["one", "-", "fake", "-", "-", "4096", "auto"]
    assert two == ["two", "-", "llama", "-", "-", "2048", "auto"]
    assert "bad.yaml, line 1 cannot be read as YAML" in done.stderr
    assert "No server runs on this machine" in done.stderr
    assert [each["id"] for each in json.loads(run("--json").stdout)] == ["one", "two"]
    shown = json.loads(run("show", "first", "--json").stdout)
    assert (shown["root"], shown["file"]) == ("one", str(folder / "one.yaml"))
    assert str(folder / "two.gguf") in run("show", "two").stdout
    assert "did you mean 'one'?" in str(error(run("show", "onne", fails=True)))


def test_a_model_of_another_server_is_shown_with_its_address(run: Run, folder: Path) -> None:
    keys = "backend: openai\nmodel: org/real\nheaders: {X-Title: a}\nendpoints: [embeddings]\n"
    (folder / "far.yaml").write_text(f"name: far\nbase_url: http://127.0.0.1:9\n{keys}")
    (listed,) = json.loads(run("--json").stdout)
    assert (listed["backend"], listed["context_size"], listed["endpoints"]) == ("openai", None, ["/v1/embeddings"])
    shown = json.loads(run("show", "far", "--json").stdout)
    assert (shown["servers"], shown["server_model"]) == (["http://127.0.0.1:9/v1"], "org/real")
    assert "weights" not in shown
    run("remove", "far", "--yes")
    assert names(folder) == set(), "only the YAML file belongs to it"


def test_an_option_before_the_verb_is_not_ignored(run: Run, folder: Path) -> None:
    done = run("--json", "list", fails=True)
    assert (error(done).code, str(done.exception)) == (ExitCode.USAGE, "Write --json behind `list`.")


def test_another_server_that_does_not_answer_is_an_error(run: Run, folder: Path) -> None:
    for verb in (["list"], ["show", "one"]):
        done = run(*verb, "--base-url", "http://127.0.0.1:9/v1", fails=True)
        assert error(done).code is ExitCode.UNREACHABLE


def test_a_model_is_removed_with_what_only_it_uses(run: Run, folder: Path) -> None:
    for number in (1, 2):
        weights(folder / "mine" / f"big-0000{number}-of-00002.gguf")
    weights(folder / "adapter.gguf")
    llama(folder, "mine", "mine/big-00001-of-00002.gguf", lora="[{path: adapter.gguf}]")
    write_model(folder, "other")
    size = sum(path.stat().st_size for path in (*folder.rglob("*.gguf"), folder / "mine.yaml"))
    done = run("remove", "mine", "--yes", "--json")
    assert names(folder) == {"other.yaml"}
    answer = removal(done)
    assert (answer["freed_bytes"], answer["kept"], answer["waiting_batches"]) == (size, [], None)
    assert f"removes {folder / 'mine.yaml'}" in done.stderr
    assert "not known whether work waits" in done.stderr


def test_bare_weights_are_removed_by_their_name(run: Run, folder: Path) -> None:
    size = weights(folder / "bare.gguf").stat().st_size
    assert f"Removed bare; {size} bytes freed." in run("remove", "bare", "--yes").stdout
    assert names(folder) == set()


def test_weights_that_something_else_uses_or_that_are_elsewhere_stay(run: Run, folder: Path, tmp_path: Path) -> None:
    weights(folder / "shared.gguf")
    weights(folder / "named.gguf")
    weights(tmp_path / "far.gguf")
    (folder / "link.gguf").symlink_to(tmp_path / "far.gguf")
    llama(folder, "a", "shared.gguf")
    llama(folder, "b", "shared.gguf")
    llama(folder, "c", "named.gguf")
    llama(folder, "d", "link.gguf")
    (folder / "draft.yaml").write_text("name: [\nmodel: named.gguf")
    reasons = {"a": "the model b uses it", "c": "draft.yaml, which is not valid, may use it", "d": "it is not in"}
    for name, reason in reasons.items():
        answer = removal(run("remove", name, "--yes", "--json"))
        assert [each["reason"].startswith(reason) for each in answer["kept"]] == [True]
    assert names(folder) == {"shared.gguf", "named.gguf", "b.yaml", "draft.yaml"}, "a link would be a model of its own"
    assert (tmp_path / "far.gguf").is_file()


def test_bytes_that_another_name_keeps_are_not_counted_as_freed(run: Run, folder: Path, tmp_path: Path) -> None:
    os.link(weights(folder / "bare.gguf"), tmp_path / "cached")
    assert removal(run("remove", "bare", "--yes", "--json"))["freed_bytes"] == 0


def test_what_is_served_instead_is_named(run: Run, folder: Path) -> None:
    write_model(folder, "a", aliases="[second]")
    (folder / "b.yaml").write_text("name: a\nbackend: fake\n")
    weights(folder / "second.gguf")
    done = run("remove", "a", "--yes")
    assert "are served now, as a, second." in done.stderr
    assert names(folder) == {"b.yaml", "second.gguf"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("onne", "; did you mean 'one'?"),
        ("first", "first is another name of one"),
        ("bad", "No valid file describes bad: bad.yaml, line 1"),
        ("../models/one", "There is no model"),
    ],
)
def test_a_name_that_is_no_model_removes_nothing(run: Run, folder: Path, name: str, reason: str) -> None:
    write_model(folder, "one", aliases="[first]")
    (folder / "bad.yaml").write_text("name: [")
    assert reason in str(error(run("remove", name, "--yes", fails=True)))
    assert names(folder) == {"one.yaml", "bad.yaml"}


def test_nothing_is_removed_without_an_answer(run: Run, folder: Path) -> None:
    write_model(folder, "one")
    done = run("remove", "one", fails=True)
    assert (error(done).code, "add --yes" in str(done.exception)) == (ExitCode.USAGE, True)
    assert names(folder) == {"one.yaml"}


def test_on_a_terminal_it_asks(folder: Path, environment: dict[str, str]) -> None:
    write_model(folder, "one")
    for answer, code, is_left in ((b"n\n", 2, True), (b"y\n", 0, False)):
        ours, theirs = pty.openpty()
        os.write(ours, answer)
        done = subprocess.run(
            [MILLRACE, "models", "remove", "one"],
            env=clean_environment() | environment,
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        assert b"Remove one? [y/N]" in os.read(ours, 65536)
        os.close(ours)
        os.close(theirs)
        assert (done.returncode, (folder / "one.yaml").exists()) == (code, is_left)
