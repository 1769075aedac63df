"""YAML with line numbers: a mapping of keys, and the line on which each key is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from core.errors import ConfigError
from core.field_errors import plain

Place = tuple[str | int, ...]

_MAX_BYTES: Final = 1 << 20  # a template of a megabyte is no template
_MAX_VALUES: Final = 50_000  # aliases repeat a value, and its parts, without end
_ADVICE: Final = {
    "found character '\\t'": " Indent with spaces, not with tabs.",
    "mapping values are not allowed here": " Is a quotation mark missing, or the indentation wrong?",
    "expected a single document": " A file has one model: write one file for each.",
}


class YamlFile:
    """The values of a file, and the lines of its keys. Raises ConfigError, which names the file and the line."""

    def __init__(self, path: Path) -> None:
        self.name = plain(path.name)
        self._lines: dict[Place, int] = {}
        try:
            text = _read(path)
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            value = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            raise ConfigError(self._invalid(error)) from None
        except OSError as error:
            raise ConfigError(f"{self.name} cannot be read: {(error.strerror or str(error)).lower()}.") from None
        except (ValueError, yaml.YAMLError) as error:  # a date such as 2026-99-99 is a ValueError
            raise ConfigError(f"{self.name} cannot be read as YAML: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise ConfigError(f"{self.name} cannot be read as YAML: it is nested too deeply.") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{self.name} is not a model file: write keys such as `name: mine`, one on each line.")
        self.values: dict[str, Any] = value  # Any: YAML
        try:
            self._collect(root, ())
        except RecursionError:
            raise ConfigError(f"{self.name} is not a model file: a value contains itself.") from None

    def place(self, keys: Place) -> str:
        """Return `FILE, line N` for a key, or for the part of it that is in the file."""
        known = (self._lines[keys[:length]] for length in range(len(keys), 0, -1) if keys[:length] in self._lines)
        line = next(known, None)
        return self.name if line is None else f"{self.name}, line {line}"

    def _collect(self, node: yaml.Node | None, place: Place) -> None:
        if len(self._lines) > _MAX_VALUES:
            raise ConfigError(f"{self.name} is not a model file: it has more than {_MAX_VALUES:,} values.")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._lines[(*place, index)] = item.start_mark.line + 1
                self._collect(item, (*place, index))
        elif isinstance(node, yaml.MappingNode):
            for key, item in node.value:
                within, line = (*place, str(key.value)), key.start_mark.line + 1
                if within in self._lines:
                    first = self._lines[within]
                    raise ConfigError(f"{self.name}, line {line}: the key {key.value!r} is on line {first} already.")
                self._lines[within] = line
                self._collect(item, within)

    def _invalid(self, error: yaml.MarkedYAMLError) -> str:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = error.problem or error.context or "it is not valid"
        advice = next((advice for part, advice in _ADVICE.items() if part in f"{error.context} {problem}"), "")
        return f"{self.name}{where} cannot be read as YAML: {problem}.{advice}"


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{plain(path.name)} is not a model file: it is larger than a megabyte.")
    return content.decode("utf-8-sig")
