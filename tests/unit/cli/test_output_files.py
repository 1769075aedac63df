"""Inputs are refused as outputs, and existing files stay until the user agrees and a complete file replaces them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from cli.errors import CommandFailed
from cli.output_files import OutputFile, choose_outputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("input\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    os.link(tmp_path / "in.jsonl", tmp_path / "hard.jsonl")
    return tmp_path


@pytest.mark.parametrize("spelling", ["in.jsonl", "./in.jsonl", "sub/../in.jsonl", "link.jsonl", "hard.jsonl"])
def test_an_input_is_refused_as_output_however_it_is_spelled_and_even_by_force(folder: Path, spelling: str) -> None:
    with pytest.raises(CommandFailed, match="is the input file"):
        choose_outputs([Path("new"), Path(spelling)], inputs=[Path("in.jsonl")], force=True)
    with pytest.raises(CommandFailed, match="is the input file"):
        choose_outputs([Path("in.jsonl")], inputs=[Path(spelling)], force=True)


def test_an_existing_file_needs_consent_where_it_holds_anything(folder: Path) -> None:
    (folder / "out").write_text("old")
    (folder / "empty").touch()
    with pytest.raises(CommandFailed, match=r"out exists already\..*--force") as refused:
        choose_outputs([Path("out")], force=False)
    assert refused.value.code == 2
    with pytest.raises(CommandFailed, match=r"out and in\.jsonl exist already"):
        choose_outputs([Path("out"), Path("in.jsonl")], force=False)
    assert [each.may_replace for each in choose_outputs([Path("out"), Path("new")], force=True)] == [True, True]
    assert choose_outputs([Path("out")], force=False, is_own=lambda _: True)[0].may_replace
    assert choose_outputs([Path("empty")], force=False)[0].may_replace


@pytest.mark.parametrize("is_agreed", [True, False])
def test_on_a_terminal_the_user_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, is_agreed: bool) -> None:
    (folder / "out").write_text("old")
    asked: list[str] = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return is_agreed

    monkeypatch.setattr("typer.confirm", confirm)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    if is_agreed:
        assert choose_outputs([Path("out")], force=False)[0].may_replace
    else:
        with pytest.raises(CommandFailed, match="Nothing was changed"):
            choose_outputs([Path("out")], force=False)
    assert asked == ["out exists already. Replace it?"]


@pytest.mark.parametrize(("output", "reason"), [("sub", "is a folder"), ("no/out", "no folder no")])
def test_an_output_that_cannot_be_a_file_is_refused_at_once(folder: Path, output: str, reason: str) -> None:
    with pytest.raises(CommandFailed, match=reason):
        choose_outputs([Path(output)], force=True)


def broken():
    yield b"half"
    raise ConnectionError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(ConnectionError):
        OutputFile(path=Path("in.jsonl"), may_replace=True).write(broken())
    with pytest.raises(ConnectionError):
        OutputFile(path=Path("new")).write(broken())
    assert (folder / "in.jsonl").read_text() == "input\n"
    assert sorted(folder.iterdir()) == before


def test_a_file_that_appears_meanwhile_is_left_as_it_is(folder: Path) -> None:
    (output,) = choose_outputs([Path("out")], force=False)

    def chunks():
        (folder / "out").write_text("of another program")
        yield b"x"

    with pytest.raises(CommandFailed, match="has appeared meanwhile"):
        output.write(chunks())
    assert (folder / "out").read_text() == "of another program"
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob(".*.part"))


def test_a_user_file_that_ends_in_part_is_not_touched(folder: Path) -> None:
    (folder / "out.part").write_text("mine")
    OutputFile(path=Path("out")).write([b"x"])
    assert (folder / "out.part").read_text() == "mine"


def test_links_modes_and_devices_stay_as_they_were(folder: Path) -> None:
    (folder / "in.jsonl").chmod(0o640)
    OutputFile(path=Path("link.jsonl"), may_replace=True).write([b"new"])
    assert (folder / "link.jsonl").is_symlink()
    assert (folder / "in.jsonl").read_text() == "new"
    assert stat.S_IMODE((folder / "in.jsonl").stat().st_mode) == 0o640
    OutputFile(path=Path("/dev/null"), may_replace=True).write([b"x"])
    assert Path("/dev/null").is_char_device()
    OutputFile(path=Path("fresh")).write([b"x"])
    (folder / "plain").touch()
    assert (folder / "fresh").stat().st_mode == (folder / "plain").stat().st_mode
