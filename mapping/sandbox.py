"""Jinja for templates of strangers: no code, no files, and bounds for texts and loops.

It bounds what a template does in this process; a server renders in a child process with limits besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Final

from jinja2 import StrictUndefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mapping.cells import cell_text, to_json
from mapping.errors import MappingError, RowError

MAX_TEXT: Final = 4 << 20
MAX_ITERATIONS: Final = 20_000
_MAX_POWER: Final = 64
_NUMBER: Final = int | float | Decimal
_COUNTED: Final = "__counted"
_CONCAT: Final = "__concat"
_FILTERS: Final = re.compile(
    "abs|capitalize|count|d|default|dictsort|e|escape|first|float|int|items|last|length|list|lower|map|max|min|reject|"
    "rejectattr|reverse|round|select|selectattr|sort|string|striptags|sum|title|trim|truncate|unique|upper|wordcount"
)
_METHODS: Final = re.compile(
    "capitalize|casefold|count|date|endswith|find|get|index|is[a-z]+|items|isoformat|keys|lower|lstrip|partition|removeprefix|"
    "removesuffix|rfind|rpartition|rsplit|rstrip|split|splitlines|startswith|strftime|strip|swapcase|title|upper|values"
)
_STATEMENTS: Final = (
    nodes.Output,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.With,
    nodes.Scope,
    nodes.ScopedEvalContextModifier,
)


class Sandbox(ImmutableSandboxedEnvironment):
    """Environment of one template."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=cell_text, keep_trailing_newline=True, autoescape=False)
        self.filters = {name: call for name, call in self.filters.items() if _FILTERS.fullmatch(name)}
        self.filters |= {
            _COUNTED: self._counted,
            _CONCAT: _concat,
            "replace": _replace,
            "join": _join,
            "tojson": _tojson,
        }
        self.globals = {"range": _range}
        self._iterations = 0

    def restrict(self, tree: nodes.Template) -> None:
        """Bound loops and joined texts of a template. Raises MappingError for other statements."""
        for statement in tree.find_all(nodes.Stmt):
            if not isinstance(statement, _STATEMENTS):
                raise MappingError(f"line {statement.lineno}: {type(statement).__name__.lower()} is not available")
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                raise MappingError(f"line {loop.lineno}: recursive loops are not available")
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        _bound_concat(tree)

    def start(self) -> None:
        """Begin to count the iterations of another row."""
        self._iterations = 0

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # Any: as in the base class
        """Allow the methods of texts, mappings and dates that make nothing large."""
        return not (callable(value) and not _METHODS.fullmatch(attr)) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:  # Any: as in the base class
        """Do not allow `str.format`, which pads without limits."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # Any: as in the base class
        """Refuse operations that make large values of small ones."""
        if operator in "*%" and not (isinstance(left, _NUMBER) and isinstance(right, _NUMBER)):
            if operator == "%" or not (isinstance(left, str) and isinstance(right, int)):
                raise RowError(f"'{operator}' of {type(left).__name__} and {type(right).__name__} is not available")
            check_size(len(left) * right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            check_size(len(left) + len(right))
        if operator == "**" and (abs(right) > _MAX_POWER or abs(left) > 1 << 32):
            raise RowError("a power is too large")
        return super().call_binop(context, operator, left, right)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:  # Any: values of a loop
        for value in values:
            self._iterations += 1
            if self._iterations > MAX_ITERATIONS:
                raise RowError(f"loops of a template run at most {MAX_ITERATIONS} times")
            yield value


def check_size(size: int) -> None:
    """Raise RowError for a text that is too long."""
    if size > MAX_TEXT:
        raise RowError(f"a template makes at most {MAX_TEXT >> 20} MiB of text")


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_ITERATIONS:
        raise RowError(f"loops of a template run at most {MAX_ITERATIONS} times")
    return numbers


def _concat(parts: list[Any]) -> str:  # Any: operands of `~`
    return _join(parts)


def _join(values: Iterable[Any], separator: str = "") -> str:  # Any: values of any type
    texts = [cell_text(value) for value in values]
    check_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:  # Any: a cell
    plain = cell_text(text)
    check_size(len(plain) + plain.count(old) * len(new))
    return plain.replace(old, new, count)


def _tojson(value: Any) -> str:  # Any: a cell; Jinja's filter escapes for HTML
    return to_json(value).decode()


def _bound_concat(node: nodes.Node) -> None:
    """Put a filter that checks sizes in place of each `~`."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, nodes.Node):
                _bound_concat(child)
        bounded = [_as_filter(child) if isinstance(child, nodes.Concat) else child for child in children]
        setattr(node, field, bounded if isinstance(value, list) else bounded[0])


def _as_filter(concat: nodes.Concat) -> nodes.Filter:
    operands = nodes.List(concat.nodes, lineno=concat.lineno)
    return nodes.Filter(operands, _CONCAT, [], [], None, None, lineno=concat.lineno)
