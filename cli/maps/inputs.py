"""The parts of a mapping as a command line names them: texts and files, the table, the model."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final
from urllib.parse import quote

import msgspec

from cli.client import Client
from cli.errors import CommandFailed, ExitCode
from cli.output import no_file, printable
from cli.output_files import STDOUT
from mapping.errors import MappingError
from mapping.formats.opening import format_of, open_table
from mapping.formats.table import TableFormat
from mapping.formats.writing import check_writable

_FIELD: Final = re.compile(r"(?:^'|`)(prompt|system|embed|column|schema|examples|where|limit|error_column)(?:'|`)")
_MAX_NAME: Final = 256
_TABS: Final = ("tab", "\\t")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report a mapping or a table that cannot be used as wrong usage, with the names of options."""
    try:
        yield
    except MappingError as error:
        message = _FIELD.sub(lambda match: f"--{match[1].replace('_', '-')}", printable(str(error)))
        first = message.partition(" ")[0]
        message = message if "." in first or first == first.upper() else message[:1].upper() + message[1:]
        raise CommandFailed(message if message.endswith((".", "?", "%}")) else f"{message}.", ExitCode.USAGE) from None


@contextmanager
def table_file(source: Path) -> Iterator[Path]:
    """Yield the path of a table; stdin (`-`), which is read twice, is copied to a temporary file."""
    if source != STDOUT:
        if not source.is_file():
            raise no_file(source)
        yield source
        return
    with NamedTemporaryFile(prefix="millrace-") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        yield Path(kept.name)


def named_format(name: str | None) -> TableFormat | None:
    """Return the format of an option. Raises CommandFailed for an unknown one."""
    if name is None:
        return None
    try:
        return TableFormat(name.lower().lstrip("."))
    except ValueError:
        message = f"There is no format {name!r}; formats are {', '.join(TableFormat)}."
        raise CommandFailed(message, ExitCode.USAGE) from None


def output_format(output: Path | None, name: str | None, source: TableFormat) -> TableFormat:
    """Return the format of the output: the one that is named, that of its extension, or without one that of the table.

    Raises CommandFailed or MappingError for one that is unknown or cannot be written here.
    """
    kind = named_format(name) or (format_of(output) if output else None)
    if kind is None and output is not None and output.suffix and output.name != "-" and not output.is_char_device():
        message = f"No format is known by {output.suffix}: use .csv, .tsv, .jsonl or .parquet, or name one with --to."
        raise CommandFailed(message, ExitCode.USAGE)
    kind = kind or (TableFormat.CSV if source is TableFormat.XLSX else source)
    check_writable(kind)
    return kind


def check_window(given: str) -> None:
    """Raise CommandFailed for a window that no batch may have."""
    from core.schemas.batch import window_seconds  # takes a tenth of a second

    if window_seconds(given) is None:
        raise CommandFailed(f"--window takes such as 90m, 24h or 7d, at most 30d, not {given!r}.", ExitCode.USAGE)


def delimiter_of(given: str | None) -> str | None:
    """Return a delimiter; `tab` is the tab character."""
    if given is None or given in _TABS:
        return given and "\t"
    if len(given) != 1:
        raise CommandFailed(f"A delimiter is one character, or tab; not {given!r}.", ExitCode.USAGE)
    return given


def examples_of(path: Path | None) -> list[dict[str, Any]] | None:  # Any: cells
    """Read the rows of a table of examples."""
    if path is None:
        return None
    if not path.is_file():
        raise no_file(path)
    return [row.values for row in open_table(path).rows() if not row.problem]


def schema_of(given: str | None) -> str | None:
    """Return the text of a schema's file, or what was given: a JSON Schema or its shorthand."""
    path = schema_file(given)
    return given if path is None else _text_of(path)


def schema_file(given: str | None) -> Path | None:
    """Return the file that a schema stands for; None for a schema itself."""
    is_schema = given is None or (set(given) & set("{:| ") and not (len(given) < _MAX_NAME and Path(given).is_file()))
    return None if given is None or is_schema else Path(given)


def prompt_of(text: str | None, path: Path | None) -> str | None:
    """Return the prompt, from a file without the line end at its end."""
    if path is None:
        return text
    if text is not None:
        raise CommandFailed("Give --prompt or --prompt-file, not both.", ExitCode.USAGE)
    return _text_of(path).rstrip("\r\n")


def parameters(pairs: list[str], temperature: float | None, max_tokens: int | None) -> dict[str, Any]:  # Any: JSON
    """Return the parameters of each request. The value of a pair `NAME=VALUE` is JSON, or text."""
    given: dict[str, Any] = {}
    if temperature is not None:
        given["temperature"] = temperature
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise CommandFailed(f"--set takes NAME=VALUE, such as top_p=0.9, not {pair!r}.", ExitCode.USAGE)
        try:
            given[name.strip()] = msgspec.json.decode(value)
        except ValueError:
            given[name.strip()] = value
    return given


def find_model(client: Client, name: str | None, endpoint: str) -> str:
    """Return the model that is named, or the only one with this endpoint. Raises CommandFailed for an unknown one."""
    if name is not None:
        client.get(f"/models/{quote(name, safe='')}")
        return name
    models = client.get("/models")["data"]
    names = sorted(
        {str(each.get("root", each["id"])) for each in models if endpoint in each.get("endpoints", (endpoint,))}
    )
    if len(names) != 1:
        listed = f"this server has {', '.join(names)}" if names else f"this server has none for {endpoint}"
        raise CommandFailed(f"Name a model with --model: {listed}.", ExitCode.USAGE)
    return names[0]


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise no_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CommandFailed(f"{path} is not UTF-8 text.", ExitCode.USAGE) from None
