"""The live catalog on folders that change, and on hostile ones."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import structlog

from core.errors import ConfigError
from core.models import models_folder
from core.models.live_catalog import LiveCatalog
from core.models.model_files import load_model
from core.models.models_folder import FolderReader, load_models
from tests.support.model_files import write_model, write_weights


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_folder, "_REPLACE_SECONDS", 0)


@pytest.fixture
def live(tmp_path: Path) -> LiveCatalog:
    """A catalog that has `one` so far."""
    write_model(tmp_path, "one")
    return LiveCatalog(tmp_path)


def test_models_come_change_and_go_while_snapshots_stay(live: LiveCatalog, tmp_path: Path) -> None:
    before = live.current
    assert not live.refresh(), "nothing has changed"
    write_model(tmp_path, "two")
    assert live.refresh()
    assert live.current.names() == ["one", "two"]
    write_model(tmp_path, "one", context_size=4096)
    assert live.refresh()
    one = live.current.get("one")
    assert one is not None
    assert one.context_size == 4096
    (tmp_path / "one.yaml").unlink()
    assert live.refresh()
    assert live.current.names() == ["two"]
    assert before.names() == ["one"], "a snapshot in use is not changed"


@pytest.mark.parametrize("content", ["", "name: [", "name: one\nbackend: fake\ncontext_size: big", "name: 2026-99-99"])
def test_a_file_that_becomes_invalid_keeps_its_last_good_version(
    live: LiveCatalog, tmp_path: Path, content: str
) -> None:
    (tmp_path / "one.yaml").write_text(content)
    assert not live.refresh()
    assert live.current.names() == ["one"]
    assert set(live.problems) == {"one.yaml"}
    assert "one.yaml" in live.problems["one.yaml"]
    write_model(tmp_path, "one", slots=3)
    assert live.refresh()
    assert not live.problems


def test_a_new_file_that_is_invalid_is_reported_and_the_others_are_served(live: LiveCatalog, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: two\nbackend: gpt\n")
    assert not live.refresh()
    assert "two.yaml, line 2: backend must be llama, transformers, openai or fake" in live.problems["two.yaml"]
    assert LiveCatalog(tmp_path).current.names() == ["one"], "a process that restarts meanwhile serves the others"
    with pytest.raises(ConfigError, match="two.yaml, line 2"):
        load_models(tmp_path)


def test_a_change_is_seen_whatever_the_time_of_the_file(live: LiveCatalog, tmp_path: Path) -> None:
    """Same size, and a time that is the same or goes back, as after `cp -p`, `git checkout` or a wrong clock."""
    file = tmp_path / "one.yaml"
    for size, time_ns in ((4096, 10**18), (8192, 10**18), (1024, 10**17), (2048, 4 * 10**18)):
        replaced = write_model(tmp_path, "one", context_size=size)
        os.utime(replaced, ns=(time_ns, time_ns))
        assert live.refresh()
        assert live.current.models[0].context_size == size
        new = tmp_path / "new"
        new.write_text(file.read_text().replace(str(size), str(size + 1)))
        os.utime(new, ns=(time_ns, time_ns))
        new.replace(file)
        assert live.refresh(), "an atomic replacement with the same time and size"
        assert live.current.models[0].context_size == size + 1


def test_a_renamed_file_changes_nothing(live: LiveCatalog, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").rename(tmp_path / "other.yml")
    assert not live.refresh()
    assert live.current.names() == ["one"]


def test_a_file_that_an_editor_puts_in_place_of_another_was_never_away(
    live: LiveCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = (tmp_path / "one.yaml").rename(tmp_path / "one.yaml~")
    monkeypatch.setattr(time, "sleep", lambda _: away.rename(tmp_path / "one.yaml"))
    assert not live.refresh()
    assert live.current.names() == ["one"]


def test_of_two_files_with_one_name_the_served_one_stays(live: LiveCatalog, tmp_path: Path) -> None:
    write_model(tmp_path, "a-copy", name="one", context_size=4096)
    assert not live.refresh()
    assert live.problems == {
        "a-copy.yaml": "Two models are called 'one', in one.yaml and a-copy.yaml. Rename one of them."
    }
    write_model(tmp_path, "two", aliases="[one]")
    assert not live.refresh()
    assert set(live.problems) == {"a-copy.yaml", "two.yaml"}
    (tmp_path / "one.yaml").unlink()
    assert live.refresh()
    assert live.current.models[0].context_size == 4096


def test_a_file_that_takes_a_name_of_another_keeps_its_own(live: LiveCatalog, tmp_path: Path) -> None:
    file = write_model(tmp_path, "two")
    live.refresh()
    file.write_text("name: one\nbackend: fake\n")
    assert not live.refresh()
    assert live.current.names() == ["one", "two"]
    assert set(live.problems) == {"two.yaml"}


def test_what_is_no_file_of_a_model_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("folder.yaml", "folder.gguf"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in (
        ".hidden.yaml",
        "._apple.yaml",
        ".gguf",
        ".yaml",
        "x.gguf.part",
        "x.gguf.incomplete",
        "x.yaml~",
        "x.bak",
    ):
        (tmp_path / name).write_bytes(b"GGUF")
    with socket.socket(socket.AF_UNIX) as held:
        monkeypatch.chdir(tmp_path)
        held.bind("s.yaml")
        live = LiveCatalog(tmp_path)
    assert (live.current.names(), live.problems) == ([], {})


def test_links_are_followed_and_a_link_to_nothing_is_reported(live: LiveCatalog, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").rename(tmp_path / "stored")
    (tmp_path / "one.yaml").symlink_to("stored")
    (tmp_path / "round.yaml").symlink_to("round.yaml")
    assert not live.refresh()
    assert live.current.names() == ["one"]
    assert set(live.problems) == {"round.yaml"}
    (tmp_path / "stored").unlink()
    assert live.refresh()
    assert live.problems["one.yaml"] == "one.yaml is a link to a file that does not exist."


@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_file_that_cannot_be_read_keeps_its_last_version(
    live: LiveCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_weights(tmp_path, "two")
    live.refresh()
    write_weights(tmp_path, "two")
    write_model(tmp_path, "one", slots=3)
    works = getattr(Path, call)

    def refuse(path: Path, *args: object, **options: object) -> object:
        if path.name in ("one.yaml", "two.gguf"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return works(path, *args, **options)

    monkeypatch.setattr(Path, call, refuse)
    assert not live.refresh()
    assert live.current.names() == ["one", "two"]
    for file in ("one.yaml", "two.gguf"):
        assert f"{file} cannot be read: permission denied." in live.problems[file].replace("Perm", "perm")


def test_a_folder_that_is_away_leaves_the_models_as_they_are(live: LiveCatalog, tmp_path: Path) -> None:
    away = tmp_path.rename(tmp_path.with_name("away"))
    assert not live.refresh()
    assert live.current.names() == ["one"]
    assert "There is no models folder" in live.problems[str(tmp_path)]
    away.rename(tmp_path)
    assert not live.refresh()
    assert not live.problems


def hostile_names() -> list[str]:
    accent = "Größe"
    return [
        unicodedata.normalize("NFC", accent),
        unicodedata.normalize("NFD", accent),
        "two words",
        "-rf",
        "new\nline",
        "\x1b[31mred",
        "\u202egnp",
        "a" * 97,
        "%2e%2e",
        os.fsdecode(b"\xff\xfe"),
    ]


def test_a_file_name_that_is_no_model_name_is_reported_in_printable_text(tmp_path: Path) -> None:
    for name in hostile_names():
        write_weights(tmp_path, name)
        (tmp_path / f"{name}.yaml").write_text("name: [")
    live = LiveCatalog(tmp_path)
    assert live.current.names() == []
    assert len(live.problems) == 2 * len(hostile_names())
    for file, problem in live.problems.items():
        assert file.isprintable()
        assert problem.isprintable()
        assert file in problem
        problem.encode()


@pytest.mark.parametrize(
    "content",
    [
        "name: one\n" + "x: " + "[" * 5000,
        "name: one\nstopwords: &a [*a]\n",
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "name: one\n#" + "x" * (1 << 20),
        "name: one\nparameters: {model: '~no-such-user/x.gguf'}",
        'name: one\nparameters: {model: "a\\0b"}',
        "name: one\nbackend: fake\naliases: [one]",
        "name: one\nbackend: fake\naliases: [b, b]",
    ],
    ids=["nested", "circle", "bomb", "huge", "user", "null", "alias of itself", "alias twice"],
)
def test_a_hostile_yaml_file_is_a_problem_like_any_other(tmp_path: Path, content: str) -> None:
    (tmp_path / "one.yaml").write_text(content)
    assert set(LiveCatalog(tmp_path).problems) == {"one.yaml"}


def test_thousands_of_files_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        os.utime(write_model(tmp_path, f"m{number}"), (1e9, 1e9))
    live = LiveCatalog(tmp_path)
    read: list[str] = []
    monkeypatch.setattr(models_folder, "load_model", lambda path, **_: read.append(path.name) or load_model(path))
    began = time.thread_time()
    assert not live.refresh()
    assert time.thread_time() - began < 0.5, "an idle look takes milliseconds"
    os.utime(write_model(tmp_path, "m7", slots=2), (1e9, 1e9))
    assert live.refresh()
    assert read == ["m7.yaml"]
    assert len(live.current.names()) == 2000


def test_the_stamp_of_weights_changes_when_they_have_been_replaced(tmp_path: Path) -> None:
    file = write_weights(tmp_path, "mine")
    live = LiveCatalog(tmp_path)
    first = live.stamp("mine")
    for size in (1000, 2000):
        file.write_bytes(b"GGUF" + bytes(size))
        assert not live.refresh()
        assert live.stamp("mine") == first, "it is still being written"
    assert live.refresh()
    assert live.stamp("mine") != first
    assert live.stamp("unknown") == ""


def test_the_thread_reports_a_change_and_survives_a_failure(
    live: LiveCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, failed = threading.Event(), threading.Event()
    read = FolderReader.read

    def fail_once(reader: FolderReader) -> object:
        if failed.is_set():
            return read(reader)
        failed.set()
        raise MemoryError

    monkeypatch.setattr(FolderReader, "read", fail_once)
    live.start(changes.set, poll_seconds=3600)
    live.refresh_soon()
    assert failed.wait(10)
    write_model(tmp_path, "two")
    live.refresh_soon()
    assert changes.wait(10)
    assert live.current.names() == ["one", "two"]
    live.close()
    assert all(thread.name != "models-folder" for thread in threading.enumerate())


def test_a_signal_that_interrupts_another_is_no_deadlock(live: LiveCatalog) -> None:
    """Two SIGHUPs in a moment: the second handler runs between any two steps of the first."""

    def interrupt(*_: Any) -> Any:  # Any: as settrace wants it
        sys.settrace(None)
        live.refresh_soon()
        sys.settrace(interrupt)
        return interrupt

    def signals() -> None:
        sys.settrace(interrupt)
        live.refresh_soon()
        sys.settrace(None)

    thread = threading.Thread(target=signals, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_problem_is_logged_once(live: LiveCatalog, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: [")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            live.refresh()
    assert [(entry["event"], entry["file"]) for entry in logs] == [("model_file_not_used", "two.yaml")]
