"""Schema checks: convert a `Constraint` to llguidance's grammar format, within limits on its size.

A constraint that is too large is rejected in microseconds, before anything is compiled. Errors about unsupported keywords
name their place in the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from llguidance import LLMatcher

from engine.errors import InvalidConstraint
from engine.types import Constraint, ConstraintKind

MAX_SCHEMA_BYTES: Final = 64 << 10
MAX_SCHEMA_DEPTH: Final = 16
MAX_SCHEMA_NODES: Final = 500
MAX_ENUM_VALUES: Final = 500
MAX_CHOICES: Final = 500
MAX_CHOICE_BYTES: Final = 16 << 10
MAX_REGEX_BYTES: Final = 4 << 10
MAX_GRAMMAR_BYTES: Final = 32 << 10
MAX_INTERNAL_GRAMMAR_BYTES: Final = 256 << 10  # all tools of a request, with their schemas
MAX_REPEAT: Final = 20_000  # a counted string has a lexer state per character; see matcher.MAX_LEXER_STATES

# JSON has fixed white space: free white space lets a model generate it without end, and only fixed text can be forced.
# Most training text has these spaces. Without them the demo model, which writes them, labels 32 of 120 tickets right
# instead of 117, with a third more tokens, since its likeliest next token is no longer allowed.
# Every option that weakens a schema is set here, so that a schema's own options have no effect.
SEPARATORS: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_OPTIONS: Final = {
    **SEPARATORS,
    "coerce_one_of": False,
    "lenient": False,
}
_ANY_OBJECT: Final = b'{"type":"object"}'

_COMBINES: Final = frozenset({"anyOf", "oneOf", "$ref"})
_OPENS: Final = frozenset({"additionalProperties", "patternProperties", "minProperties", "maxProperties"})

_ONE_SCHEMA: Final = ("items", "additionalItems", "additionalProperties")
_SCHEMAS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS: Final = ("properties", "patternProperties", "$defs", "definitions")
_UNSUPPORTED: Final = frozenset(
    {
        *("not", "if", "then", "else"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems"),
        *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedProperties"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "contentSchema"),
    }
)
_REPEATS: Final = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")

Schema = dict[str, Any]  # Any: JSON


def grammar_text(constraint: Constraint, *, is_internal: bool = False) -> str:
    """Write the grammar in llguidance's own format; raises InvalidConstraint. An internal grammar has a higher size limit."""
    text = constraint.text
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return _json_grammar(_ANY_OBJECT)
        case ConstraintKind.JSON_SCHEMA:
            # compile the checked value, not the text, which another parser could read differently
            return _json_grammar(msgspec.json.encode(close_objects(_checked_schema(text))))
        case ConstraintKind.REGEX:
            _limit(text, MAX_REGEX_BYTES, "The regex")
            return LLMatcher.grammar_from_regex(text)
        case ConstraintKind.CHOICE:
            return LLMatcher.grammar_from_lark(_choice_grammar(text))
        case ConstraintKind.GRAMMAR:
            _limit(text, MAX_INTERNAL_GRAMMAR_BYTES if is_internal else MAX_GRAMMAR_BYTES, "The grammar")
            # JSON is llguidance's own format, which has no such limits
            if not text.strip() or text.lstrip().startswith("{"):
                raise InvalidConstraint("The grammar must be in Lark's syntax, with a rule 'start'.")
            return LLMatcher.grammar_from_lark(text)


def _json_grammar(schema: bytes) -> str:
    return LLMatcher.grammar_from_json_schema(schema.decode(), overrides=_OPTIONS)  # type: ignore[arg-type]


def _limit(text: str, max_bytes: int, what: str) -> None:
    size = len(text.encode())
    if size > max_bytes:
        raise InvalidConstraint(f"{what} has {size} bytes; at most {max_bytes} are allowed.")


def _choice_grammar(text: str) -> str:
    _limit(text, MAX_CHOICE_BYTES, "The list of choices")
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError:
        raise InvalidConstraint("The choices must be a list of strings.") from None
    if not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidConstraint(f"There must be 1 to {MAX_CHOICES} choices; there are {len(choices)}.")
    if "" in choices:
        raise InvalidConstraint("A choice cannot be empty.")
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)


def close_objects(schema: Schema) -> Schema:
    """Set `additionalProperties: false` on every object of the schema that has properties and no rule for others.

    JSON Schema allows other keys, but they are not wanted, a model may add them without end, and they prevent forced tokens
    behind a value. A schema that combines several schemas for one object is unchanged, since another one may name the key.
    """
    nodes = [node for node, _, _ in _walk(schema)]
    if any("allOf" in node or ("properties" in node and _COMBINES & node.keys()) for node in nodes):
        return schema
    for node in nodes:
        if "properties" in node and not _OPENS & node.keys():
            node["additionalProperties"] = False
    return schema


# --- schemas ---------------------------------------------------------------------------------------------------------


def _checked_schema(text: str) -> Schema:
    _limit(text, MAX_SCHEMA_BYTES, "The schema")
    try:
        schema = msgspec.json.decode(text)
    except RecursionError:
        raise InvalidConstraint("The schema is nested too deeply.") from None
    except msgspec.MsgspecError:
        raise InvalidConstraint("The schema is not JSON.") from None
    if not isinstance(schema, dict):
        raise InvalidConstraint("The schema must be a JSON object.")
    if "x-guidance" in schema:
        raise InvalidConstraint("The keyword 'x-guidance' is reserved for the server.")
    for num_nodes, (node, place, depth) in enumerate(_walk(schema), 1):
        if num_nodes > MAX_SCHEMA_NODES:
            raise InvalidConstraint(f"The schema holds more than {MAX_SCHEMA_NODES} schemas.")
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidConstraint(f"The schema at '{_short(place)}' is nested more than {MAX_SCHEMA_DEPTH} deep.")
        _check_node(node, place)
    return schema


def _walk(schema: Schema) -> Iterator[tuple[Schema, str, int]]:
    """Yield every schema in a schema, with its JSON pointer and depth. Values of `enum` and `const` are not schemas."""
    stack: list[tuple[Any, str, int]] = [(schema, "#", 1)]  # Any: JSON
    while stack:
        node, place, depth = stack.pop()
        if not isinstance(node, dict):
            continue  # true and false; llguidance rejects anything else
        yield node, place, depth
        stack += [(node.get(keyword), f"{place}/{keyword}", depth + 1) for keyword in _ONE_SCHEMA]
        for keyword in _SCHEMAS:
            if isinstance(children := node.get(keyword), list):
                stack += [(child, f"{place}/{keyword}/{index}", depth + 1) for index, child in enumerate(children)]
        for keyword in _NAMED_SCHEMAS:
            if isinstance(named := node.get(keyword), dict):
                stack += [(child, f"{place}/{keyword}/{name}", depth + 1) for name, child in named.items()]


def _check_node(node: Schema, place: str) -> None:
    if unsupported := sorted(_UNSUPPORTED & node.keys()):
        raise InvalidConstraint(f"The keyword '{unsupported[0]}' at '{_short(place)}' is not supported.")
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise InvalidConstraint(f"The '$ref' at '{_short(place)}' must point into the schema itself, as '#/...'.")
    if isinstance(values := node.get("enum"), list) and len(values) > MAX_ENUM_VALUES:
        raise InvalidConstraint(
            f"The 'enum' at '{_short(place)}' has {len(values)} values; at most {MAX_ENUM_VALUES} are allowed."
        )
    for keyword in _REPEATS:
        count = node.get(keyword)
        if isinstance(count, int | float) and count > MAX_REPEAT:
            raise InvalidConstraint(f"'{keyword}' at '{_short(place)}' is above the limit of {MAX_REPEAT}.")
    for pattern in _patterns(node):
        _limit(pattern, MAX_REGEX_BYTES, f"The pattern at '{_short(place)}'")


def _patterns(node: Schema) -> list[str]:
    named = node.get("patternProperties")
    patterns = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
    return [pattern for pattern in patterns if isinstance(pattern, str)]


def _short(place: str) -> str:
    return place if len(place) <= 120 else f"{place[:80]}...{place[-37:]}"
