"""Base of request schemas, and the translation of pydantic's errors into one problem with a code of OpenAI's.

A message never repeats the invalid value, which may be a prompt.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from core.errors import ApiError, bad_request

_CODES: Final = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "value_error": "invalid_value",
}
_IN_JSON: Final = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a list",
}
_MAX_NAME: Final = 64  # longer names are keys that were sent, not fields, and are not repeated
_BRANCHES: Final = frozenset({"str", "int", "bool", "list"})

MAX_INPUT_TOKENS: Final = 1 << 20

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# Lists stop at their first wrong item (`fail_fast`): a million errors would take minutes and gigabytes.
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_INPUT_TOKENS, fail_fast=True)]
Input = str | list[int]


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return metadata within OpenAI's limits unchanged. Raises ValueError."""
    if len(metadata) > 16:
        raise ValueError("at most 16 pairs are allowed")
    if any(len(key) > 64 or len(text) > 512 for key, text in metadata.items()):
        raise ValueError("keys have at most 64 characters and values at most 512")
    return metadata


Metadata = Annotated[dict[str, str], AfterValidator(check_metadata)]


class RequestModel(BaseModel):
    """Base of request bodies: strict types, no infinities; unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Unsupported(ValueError):
    """A field asks for a feature that this server does not have; the message names the alternative."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


_Model = TypeVar("_Model", bound=RequestModel)


def parse_body(kind: type[_Model], body: Any) -> _Model:  # Any: parsed JSON of unknown shape
    """Validate a parsed JSON value. Raises a 400 that names the field."""
    if not isinstance(body, dict):
        raise bad_request("The request body must be a JSON object.", code="invalid_json")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise to_api_error(error) from None


def to_api_error(error: ValidationError) -> ApiError:
    """Return the first error as a 400."""
    first = _closest(error.errors(include_input=False, include_url=False))
    param = _path(first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Unsupported):
        return bad_request(str(cause), code="unsupported_parameter", param=cause.param or param)
    if first["type"] == "missing":
        return bad_request(f"Missing required parameter: '{param}'.", code=_CODES["missing"], param=param)
    message = str(cause) if cause is not None else _IN_JSON.get(first["type"], first["msg"])
    code = _CODES.get(first["type"]) or ("invalid_type" if first["type"].endswith("_type") else "invalid_value")
    return bad_request(f"Invalid value for '{param}': {message}." if param else message, code=code, param=param)


def _closest(errors: list[ErrorDetails]) -> ErrorDetails:
    """Return the first error; of the errors of a union about one field, that of the branch that fits best."""
    param = _path(errors[0]["loc"])
    if param is None:
        return errors[0]
    within = [(path, each) for each in errors if (path := _path(each["loc"])) and _is_within(path, param)]
    return max(within, key=lambda found: (not found[1]["type"].endswith("_type"), _depth(found[0])))[1]


def _depth(path: str) -> int:
    return path.count(".") + path.count("[")


def _is_within(path: str, param: str) -> bool:
    return path == param or path.startswith((f"{param}.", f"{param}["))


def _path(location: tuple[int | str, ...]) -> str | None:
    """Format `('messages', 0, 'content')` as `messages[0].content`; names of union branches are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif len(part) <= _MAX_NAME and part.isidentifier() and not part[0].isupper() and part not in _BRANCHES:
            path += f".{part}" if path else part
    return path or None


def as_inputs(value: str | list[str] | list[int] | list[list[int]]) -> list[Input]:
    """Split an input into its texts, or lists of token ids."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [[token for token in value if isinstance(token, int)]]
    return [one for one in value if not isinstance(one, int)]
