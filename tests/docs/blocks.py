"""Fenced code blocks of a page, with their language, place and marker."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.settings import ROOT

OUTPUT_LANGUAGES: Final = ("text", "json", "jsonl")
UNCHECKED_LANGUAGES: Final = ("text", "ini", "nginx", "promql")
LANGUAGES: Final = ("sh", "console", "python", "json", "jsonl", "yaml", "toml", "sql", "js", *UNCHECKED_LANGUAGES)
NOT_RUN_REASONS: Final = (
    "needs a GPU",
    "needs a cluster",
    "needs another host",
    "needs a container engine",
    "needs another server",
    "needs the network",
    "needs a model that is not here",
    "installs software",
    "changes the system",
    "runs until it is stopped",
    "takes long",
)
_MARKER: Final = re.compile(r"<!-- (not run: (?P<reason>.+)|(?P<fails>fails)) -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block; `line` is that of its first line of code, and `output` the text that it must print, if shown."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None = None
    fails: bool = False
    output: str | None = None
    is_output: bool = False

    @property
    def place(self) -> str:
        """The page and line, as an editor opens them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return README.md and all pages of the manual; decisions are no part of it."""
    manual = sorted(path for path in (ROOT / "docs").rglob("*.md") if "decisions" not in path.parts)
    return [ROOT / "README.md", *manual]


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order, each with the output block directly behind it."""
    found: list[Block] = []
    ends: list[int] = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"( *)(```+)(.*)$", lines[number])
        if fence is None:
            number += 1
            continue
        indent, ticks, language = fence.groups()
        end = next((each for each in range(number + 1, len(lines)) if lines[each].strip() == ticks), len(lines))
        code = "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end])
        marker = _MARKER.fullmatch(lines[number - 1].strip()) if number else None
        is_behind = bool(found) and not any(line.strip() for line in lines[ends[-1] + 1 : number])
        if is_behind and language in OUTPUT_LANGUAGES and found[-1].language in ("sh", "python"):
            found[-1] = _with_output(found[-1], code)
        found.append(
            Block(
                page=page,
                line=number + 2,
                language=language.strip(),
                code=code,
                not_run=marker["reason"] if marker else None,
                fails=bool(marker and marker["fails"]),
                is_output=is_behind and language in OUTPUT_LANGUAGES and found[-1].language in ("sh", "python"),
            )
        )
        ends.append(end)
        number = end + 1
    return found


def _with_output(block: Block, output: str) -> Block:
    return Block(
        page=block.page,
        line=block.line,
        language=block.language,
        code=block.code,
        not_run=block.not_run,
        fails=block.fails,
        output=output,
    )


def transcript(code: str) -> Iterator[tuple[int, str, str]]:
    """Yield each command of a `console` block with the number of its line and the output that is shown below it."""
    lines = code.splitlines()
    number = 0
    while number < len(lines):
        start = number
        if not lines[start].startswith("$ "):
            raise AssertionError(f"a transcript begins with `$ `: {lines[start]}")
        command = lines[start][2:]
        number += 1
        while number < len(lines) and (command.endswith("\\") or syntax_error(command)):
            command += "\n" + lines[number]
            number += 1
        output = []
        while number < len(lines) and not lines[number].startswith("$ "):
            output.append(lines[number])
            number += 1
        yield start, command, "\n".join(output)


def syntax_error(script: str) -> str:
    """Return what bash finds wrong with a script; empty when it parses."""
    return subprocess.run(["bash", "-n"], input=script + "\n", capture_output=True, text=True, check=False).stderr


def indented_code(page: Path) -> list[int]:
    """Return the lines of code that is indented instead of fenced, which has no language and is not checked."""
    wrong = []
    is_fenced = is_list = False
    previous = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced and line.strip():
            if re.match(r"\s*([*+-]|\d+\.) ", line):
                is_list = True
            elif not line.startswith(" "):
                is_list = False
            if line.startswith("    ") and not previous.strip() and not is_list:
                wrong.append(number)
        previous = line
    return wrong
