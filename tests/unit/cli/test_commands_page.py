"""`docs/commands.md` has every verb and every exit code."""

from __future__ import annotations

import re

import typer

from cli.errors import ExitCode
from cli.main import app
from core.settings import ROOT

PAGE = (ROOT / "docs" / "commands.md").read_text()


def verbs(group: typer.Typer, prefix: str = "") -> set[str]:
    """As they are typed."""
    names = {
        prefix + (command.name or command.callback.__name__)
        for command in group.registered_commands
        if command.callback is not None
    }
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        names |= verbs(inner.typer_instance, f"{inner.name} ")
    return names


def test_every_verb_is_on_the_page() -> None:
    shown = re.findall(r"`([^`\n]+)`", PAGE)
    assert {verb for verb in verbs(app) if not any(f"{text} ".startswith(f"{verb} ") for text in shown)} == set()


def test_every_exit_code_is_on_the_page() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == set(ExitCode)
