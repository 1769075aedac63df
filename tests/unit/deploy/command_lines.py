"""Command lines of units, charts and compose, parsed as the command line does it, with nothing run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.main import get_command

from cli.main import app


def parse(words: Sequence[str]) -> None:
    """Parse the words after `millrace`; raises what the command line would say."""
    command: Any = get_command(app)
    name, rest = "millrace", list(words)
    while hasattr(command, "commands"):
        context = command.context_class(command)
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, list(rest))
