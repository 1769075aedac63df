"""Jinja environment: compile a chat template in a sandbox, with the tags, filters and functions that templates expect.

They are those of Hugging Face's `apply_chat_template`, for which templates are written.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import TemplateFailed
from engine.inputs.special_text import MARKS

# A rendering or a compilation may fail with any of these; MemoryError is not among them.
TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
# without the marks of `engine.inputs.special_text`, which have to stay visible
_NOT_ASCII: Final = re.compile(f"[^\x00-\x7e{MARKS}]")


class AbsentTools(jinja2.Undefined):
    """The value of `tools` in a request without tools: it is neither defined nor different from none, and has no items.

    So templates work that test for either, and those that test for nothing.
    """

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, AbsentTools)

    __hash__ = jinja2.Undefined.__hash__


class _Generation(Extension):
    """The tag `{% generation %}`, which marks an assistant's turn for training; its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def compile_template(source: str) -> jinja2.Template:
    """Compile a template; raises TemplateFailed with the reason and the line."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.tests["none"] = _is_none
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
    try:
        template = environment.from_string(source)
    except TEMPLATE_ERRORS as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", line {line}"
        raise TemplateFailed(f"{str(error) or type(error).__name__}{where}") from None
    template.globals = dict(template.globals)  # it is copied for each rendering, and a ChainMap is ten times as slow
    return template


def _is_none(value: object) -> bool:
    return value is None or isinstance(value, AbsentTools)


def _to_json(
    value: Any,  # Any: any value of a template
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace Jinja's filter: no HTML escapes, and the parameters that templates of model files use."""
    value = None if isinstance(value, AbsentTools) else value
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
