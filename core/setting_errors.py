"""Sentences about settings that are wrong or unknown, with the option, variable or line of the file that sets them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.field_errors import describe, nearest
from core.setting_files import SUFFIX

_OPTIONS: Final = ("host", "port", "state_dir", "models_dir")
TOML_FILE: Final = "millrace.toml"
PREFIX: Final = "MILLRACE_"
_OTHERS: Final = ("NO_USER_NAMESPACE", "CI", "FAILPOINT", "BENCH", "TEST")  # variables that are no settings begin so


def describe_settings(error: ValidationError, names: Collection[str], overrides: Mapping[str, Any]) -> str:
    """Return a sentence for each error. `overrides`: the arguments, which come from options."""
    return " ".join(f"{_describe(each, names, overrides)}." for each in error.errors()).replace("?.", "?")


def warn_of_unknown(names: Collection[str]) -> list[str]:
    """Return a warning for each environment variable that looks like a setting and is none."""
    known = [name.upper() for name in names]
    given = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    keys = {name: name.upper().removeprefix(PREFIX) for name in given}
    return [
        f"there is no setting {name}{nearest(key, known) or '; it is ignored.'}".replace("mean '", f"mean '{PREFIX}")
        for name, key in keys.items()
        if key not in known and key.removesuffix(SUFFIX) not in known and not key.startswith(_OTHERS)
    ]


def _describe(
    error: ErrorDetails, names: Collection[str], overrides: Mapping[str, Any]
) -> str:  # Any: values of settings
    field = str(error["loc"][0]).lower().removeprefix(PREFIX.lower())
    if error["type"] == "extra_forbidden":
        return f"{_toml_place(field)}: there is no setting {field!r}{nearest(field, names)}"
    if field in overrides:
        option = f"--{field.replace('_', '-')}" if field in _OPTIONS else field
        return f"{option} {describe(error)}"
    spellings = (f"{PREFIX}{field.upper()}", field.upper() if field.endswith("_url") else "")
    given = sorted(os.environ, key=lambda name: name.upper().endswith(SUFFIX))  # a variable is stronger than its file
    variable = next((name for name in given if name.upper().removesuffix(SUFFIX) in spellings), None)
    return f"{variable or f'{_toml_place(field)}: {field}'} {describe(error)}"


def _toml_place(field: str) -> str:
    """Return `millrace.toml, line N` for a key."""
    try:
        lines = Path(TOML_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return TOML_FILE
    key = re.compile(rf"\s*[\"']?{re.escape(field)}[\"']?\s*=")
    number = next((number for number, line in enumerate(lines, 1) if key.match(line)), None)
    return TOML_FILE if number is None else f"{TOML_FILE}, line {number}"
