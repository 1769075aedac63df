"""Prompt templates over a row: `{column}` and Jinja.

`{text}` in single braces is the column `text`, also `{Ticket text}`; other single braces, such as those of JSON, are text.
`{{ … }}` and `{% … %}` are Jinja: columns are its variables, and `row["Ticket text"]` reaches each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from jinja2 import TemplateError, meta, nodes

from core.field_errors import nearest
from mapping.cells import cell_text
from mapping.errors import MappingError, RowError
from mapping.sandbox import Sandbox, check_size

_ROW: Final = "row"
_CELL: Final = "__cell"  # the row for columns in single braces, also where a column is named `row`
_PARTS: Final = re.compile(
    r"(?P<jinja>\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}|\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\})|\{(?P<name>[^{}\n]*)\}",
    re.DOTALL,
)
_BEFORE_FORMAT: Final = re.compile(r"\s*([^\W\d]\w*)[.:!|\[]")
_TYPO: Final = 0.85  # similarity of a text in braces and a column from which it is a typing error
_MAX_SHOWN: Final = 20
_HELP: Final = "Write braces that are text as {% raw %}{x}{% endraw %}"


class Template:
    """A template that has been checked against the columns of a table."""

    def __init__(self, source: str, columns: Sequence[str], *, param: str = "prompt") -> None:
        """Compile the template. Raises MappingError for wrong syntax and for a column that the table does not have."""
        self._param = param
        self._columns = columns
        self._sandbox = Sandbox()
        try:
            tree = self._sandbox.parse(_PARTS.sub(self._braces, source))
            self.used = self._used(tree)
            self._sandbox.restrict(tree)
            self._compiled = self._sandbox.from_string(tree)
        except MappingError as error:
            raise MappingError(f"{param!r}: {error}", param=param) from None
        except (TemplateError, SyntaxError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            problem = (
                f"{param!r} is no template: {str(error) or type(error).__name__}{f' (line {line})' if line else ''}"
            )
            raise MappingError(f"{problem}. {_HELP}", param=param) from None
        self._plain = _as_format(tree)

    def render(self, values: Mapping[str, Any]) -> str:  # Any: cells
        """Render a row. Raises RowError."""
        if self._plain is not None:
            text, names = self._plain
            return text % tuple([value if type(value := values[name]) is str else cell_text(value) for name in names])
        self._sandbox.start()
        parts: list[str] = []
        size = 0
        try:
            for part in self._compiled.generate({_ROW: values, _CELL: values, **values}):
                size += len(part)
                check_size(size)
                parts.append(part)
        except RowError as error:
            raise RowError(f"{self._param!r} fails: {error}") from None
        except Exception as error:  # a template may raise anything
            hint = ". Cells of CSV files are text: write such as amount|float" if isinstance(error, TypeError) else ""
            raise RowError(f"{self._param!r} fails: {error}{hint}") from error
        return "".join(parts)

    def _braces(self, match: re.Match[str]) -> str:
        """Translate `{column}` to Jinja, and leave braces that are text. Raises MappingError for what looks like a column."""
        if match["jinja"]:
            return match[0]
        inside = match["name"]
        name = inside if inside in self._columns else inside.strip()
        if name in self._columns:
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            return f'{{{{ {_CELL}["{quoted}"] }}}}'
        root = _BEFORE_FORMAT.match(inside)
        if root and root[1] in self._columns and inside[root.end() : root.end() + 1] not in (" ", '"'):
            raise MappingError(
                f"{match[0]!r} has no meaning; write such as {{{{ {root[1]}|upper }}}} or {{{{ {root[1]}.key }}}}"
            )
        is_typo = name and not {'"', "'", ":"} & set(name) and get_close_matches(name, self._columns, n=1, cutoff=_TYPO)
        if name.isidentifier() or is_typo:
            raise self._unknown(name)
        return match[0]

    def _unknown(self, name: str) -> MappingError:
        shown = ", ".join(self._columns[:_MAX_SHOWN]) + (", …" if len(self._columns) > _MAX_SHOWN else "")
        hint = nearest(name, self._columns) or f"; it has {shown}"
        return MappingError(f"the table has no column {name!r}{hint}{'' if hint[-1] in '?.' else '.'} {_HELP}")

    def _used(self, tree: nodes.Template) -> frozenset[str]:
        """Return the columns that a template uses; `row` alone is all of them. Raises MappingError for an unknown one."""
        rows = {_CELL} if _ROW in self._columns else {_CELL, _ROW}
        used = meta.find_undeclared_variables(tree) - rows - set(self._sandbox.globals)
        num_whole = sum(name.name in rows for name in tree.find_all(nodes.Name))
        for node in tree.find_all((nodes.Getitem, nodes.Getattr)):
            match node:
                case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=key)) if name in rows:
                    used.add(str(key))
                case nodes.Getattr(node=nodes.Name(name=name), attr=key) if name in rows and not hasattr(dict, key):
                    used.add(key)
                case _:
                    continue
            num_whole -= 1
        if unknown := sorted(used - set(self._columns)):
            raise self._unknown(unknown[0])
        return frozenset(self._columns if num_whole else used)


def _as_format(tree: nodes.Template) -> tuple[str, tuple[str, ...]] | None:
    """Return a template of only texts and columns as a format of `%` and its columns: Jinja takes ten times as long."""
    text = ""
    names: list[str] = []
    for node in tree.body:
        for part in node.nodes if isinstance(node, nodes.Output) else [node]:
            match part:
                case nodes.TemplateData(data=data):
                    text += data.replace("%", "%%")
                case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=column)) if name == _CELL:
                    text += "%s"
                    names.append(column)
                case _:
                    return None
    return text, tuple(names)
