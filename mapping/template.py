"""Prompt templates over a row: `{column}` and Jinja, in a sandbox with bounds.

`{text}` in single braces is the column `text`, also `{Ticket text}`; other single braces, such as those of JSON, are text.
`{{ … }}` and `{% … %}` are Jinja: columns are its variables, and `row["Ticket text"]` reaches each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.field_errors import nearest
from mapping.cells import cell_text
from mapping.errors import MappingError, RowError

MAX_OUTPUT: Final = 4 << 20
MAX_ITERATIONS: Final = 20_000
_ROW: Final = "row"
_CELL: Final = "__cell"
_PARTS: Final = re.compile(
    r"(?P<jinja>\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}|\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\})|\{(?P<name>[^{}\n\"']*)\}",
    re.DOTALL,
)
_FILTERS: Final = re.compile(
    "abs|capitalize|count|d|default|dictsort|e|escape|first|float|int|items|join|last|length|list|lower|map|max|min|reject|"
    "rejectattr|replace|reverse|round|select|selectattr|sort|string|striptags|sum|title|tojson|trim|truncate|unique|upper|wordcount"
)
_STATEMENTS: Final = (
    nodes.Macro,
    nodes.CallBlock,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.Block,
)
_METHODS: Final = re.compile(
    "capitalize|casefold|count|date|endswith|find|get|index|is[a-z]+|items|isoformat|keys|lower|lstrip|partition|removeprefix|"
    "removesuffix|rfind|rpartition|rsplit|rstrip|split|splitlines|startswith|strftime|strip|swapcase|title|upper|values"
)


class _Environment(ImmutableSandboxedEnvironment):
    """Sandbox without the filters, methods and operators that make much of little; loops count their iterations."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=cell_text, keep_trailing_newline=True, autoescape=False)
        self.iterations = 0
        self.filters = {name: call for name, call in self.filters.items() if _FILTERS.fullmatch(name)}
        self.filters |= {"__counted": self._counted, "__concat": _concat, "replace": _replace, "join": _join}
        self.globals = {name: self.globals[name] for name in ("range", "dict")}
        self.globals["range"] = _range

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # Any: as in the base class
        if callable(value) and not _METHODS.fullmatch(attr):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # Any: as in the base class
        sizes = [len(side) if isinstance(side, Sequence) else side for side in (left, right)]
        is_sequence = isinstance(left, Sequence) or isinstance(right, Sequence)
        if operator == "%" and isinstance(left, str):
            raise RowError("the template formats text with '%': use filters such as round")
        if operator == "*" and is_sequence and all(isinstance(size, int) for size in sizes):
            _check_size(sizes[0] * sizes[1])
        if operator == "+" and is_sequence and all(isinstance(size, int) for size in sizes):
            _check_size(sizes[0] + sizes[1])
        if operator == "**" and (abs(right) > 64 or abs(left) > 1 << 32):
            raise RowError("the template computes a power that is too large")
        return super().call_binop(context, operator, left, right)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.iterations += 1
            if self.iterations > MAX_ITERATIONS:
                raise RowError(f"the template loops more than {MAX_ITERATIONS} times")
            yield value


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise RowError(f"the template makes a text of more than {MAX_OUTPUT >> 20} MiB")


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_ITERATIONS:
        raise RowError(f"the template loops more than {MAX_ITERATIONS} times")
    return numbers


def _concat(parts: list[Any]) -> str:
    texts = [cell_text(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    texts = [cell_text(value if attribute is None else value[attribute]) for value in values]
    _check_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    plain = cell_text(text)
    _check_size(len(plain) + plain.count(old) * len(new))
    return plain.replace(old, new, count)


class Template:
    """A template that has been checked against the columns of a table."""

    def __init__(self, source: str, columns: Sequence[str], *, param: str = "prompt") -> None:
        """Compile the template. Raises MappingError for wrong syntax and for a column that the table does not have."""
        self._param = param
        self._columns = columns
        self._environment = _Environment()
        self.used: frozenset[str] = frozenset()
        try:
            tree = self._environment.parse(_PARTS.sub(self._braces, source))
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise self._error(f"{error.message}{f' (line {line})' if line else ''}. {_BRACES}") from None
        self._check(tree)
        self._compiled = self._environment.from_string(tree)
        self._plain = _as_plain(tree)

    def render(self, values: Mapping[str, Any]) -> str:  # Any: cells
        """Render a row. Raises RowError."""
        if self._plain is not None:
            text, names = self._plain
            return text % tuple([value if type(value := values[name]) is str else cell_text(value) for name in names])
        self._environment.iterations = 0
        parts: list[str] = []
        size = 0
        try:
            for part in self._compiled.generate({_ROW: values, _CELL: values, **values}):
                size += len(part)
                _check_size(size)
                parts.append(part)
        except RowError:
            raise
        except Exception as error:  # a template may raise anything
            raise RowError(f"{self._param!r} cannot be rendered: {error}") from error
        return "".join(parts)

    def _error(self, problem: str) -> MappingError:
        return MappingError(f"{self._param!r}: {problem}", param=self._param)

    def _braces(self, match: re.Match[str]) -> str:
        """Translate `{column}` to Jinja; leave other braces."""
        if match["jinja"]:
            return match[0]
        name = match["name"]
        column = name if name in self._columns else name.strip()
        if column in self._columns:
            return "{{ " + f"{_CELL}[{_quote(column)}]" + " }}"
        root = re.match(r"\s*([^\W\d]\w*)(?=[.:!|\[])", name)
        if root and root[1] in self._columns:
            raise self._error(
                f"{match[0]!r} is no column; write such as {{{{ {root[1]}|upper }}}} or {{{{ {root[1]}.key }}}}"
            )
        if column.isidentifier() or (column and get_close_matches(column, self._columns, n=1, cutoff=0.8)):
            raise self._error(f"{self._unknown(column)}. {_BRACES}")
        return match[0]

    def _unknown(self, name: str) -> str:
        shown = ", ".join(self._columns[:20]) + (", …" if len(self._columns) > 20 else "")
        return f"the table has no column {name!r}{nearest(name, self._columns) or f'; it has {shown}'}"

    def _check(self, tree: nodes.Template) -> None:
        """Find the used columns, refuse unknown ones and statements that are not needed, and bound loops and joined texts."""
        if found := next(tree.find_all(_STATEMENTS), None):
            raise self._error(f"line {found.lineno}: {type(found).__name__.lower()} is not available")
        known = {*self._columns, _ROW, _CELL, *self._environment.globals}
        used = meta.find_undeclared_variables(tree)
        if unknown := sorted(used - known):
            raise self._error(f"{self._unknown(unknown[0])}. {_BRACES}")
        named = [
            item
            for item in tree.find_all(nodes.Getitem)
            if isinstance(item.node, nodes.Name)
            and item.node.name in (_ROW, _CELL)
            and isinstance(item.arg, nodes.Const)
        ]
        used.update(item.arg.value for item in named)  # type: ignore[attr-defined]  # a Const, as was checked
        if unknown := sorted(used - known, key=str):
            raise self._error(self._unknown(str(unknown[0])))
        rows = {id(name) for name in tree.find_all(nodes.Name) if name.name == _ROW}
        if _ROW not in self._columns and rows - {id(item.node) for item in named}:
            used.update(self._columns)  # `row` stands for the whole row
        self.used = frozenset(used & set(self._columns))
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "__counted", [], [], None, None)
        _bound_concat(tree)


def _as_plain(tree: nodes.Template) -> tuple[str, tuple[str, ...]] | None:
    """Return a template of only texts and columns as a format of `%` and its columns: Jinja takes ten times as long."""
    text = ""
    names: list[str] = []
    for node in tree.body:
        if not isinstance(node, nodes.Output):
            return None
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData):
                text += part.data.replace("%", "%%")
                continue
            match part:
                case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=value)) if name == _CELL:
                    text += "%s"
                    names.append(value)
                case _:
                    return None
    return text, tuple(names)


def _bound_concat(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                _bound_concat(child)
        if isinstance(value, nodes.Concat):
            setattr(node, field, _bounded(value))
        elif isinstance(value, list):
            value[:] = [_bounded(child) if isinstance(child, nodes.Concat) else child for child in value]


def _bounded(concat: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(
        nodes.List(concat.nodes, lineno=concat.lineno), "__concat", [], [], None, None, lineno=concat.lineno
    )


def _quote(text: str) -> str:
    """Return a text as a string of Jinja."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_BRACES: Final = "Braces that are text: {% raw %}{x}{% endraw %}"
