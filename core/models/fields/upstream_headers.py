"""Headers of the requests to a server upstream: what a model file may set, and secrets from the environment.

A model file, the arguments of processes and messages hold names of variables, never their values. Imports no settings, so that
an engine may use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, section 5.6.2
_VALUE: Final = re.compile(r"[!-~](?:[ \t!-~]{0,8190}[!-~])?")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET: Final = re.compile(r"auth|cookie|credential|secret|password|token|(^|[-_])key$|apikey", re.IGNORECASE)
# RFC 9110, section 7.6.1, and those that the body and the address decide
_OF_CONNECTION: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade", "host", "content-length", "content-type", "content-encoding", "accept",
     "accept-encoding", "expect"}
)  # fmt: skip


class NoSecret(ValueError):
    """A variable of the environment is missing or cannot be sent; the message names it, and never has its value."""


def check_header(name: str, value: str) -> None:
    """Raise ValueError for a header that a model file may not set."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no name of a header")
    if name.lower() in _OF_CONNECTION:
        raise ValueError(f"{name} belongs to the connection or the body, which are Millrace's; remove it")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {name} must have printable ASCII characters, and neither begin nor end with space"
        )
    if "${" in _VARIABLE.sub("", value):
        raise ValueError(f"the value of {name} has ${{ without the name of a variable, such as ${{MY_KEY}}")
    if _SECRET.search(name) and not _VARIABLE.search(value):
        raise ValueError(f"{name} is a secret: put it into the environment, and write ${{VARIABLE}} here")


def read_secrets(api_key_env: str | None, headers: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of all variables that the requests need.

    Raises NoSecret for one that is not set, or that no header can hold.
    """
    named = [name for value in headers.values() for name in _VARIABLE.findall(value)]
    return {name: _secret(name, environment) for name in (*((api_key_env,) if api_key_env else ()), *named)}


def request_headers(api_key_env: str | None, headers: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request, with the secrets that `read_secrets` has returned."""
    filled = {name: _VARIABLE.sub(lambda found: secrets[found[1]], value) for name, value in headers.items()}
    if api_key_env:
        filled["Authorization"] = f"Bearer {secrets[api_key_env]}"
    return filled


def _secret(variable: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip()  # files of secrets end with a line end
    if not value:
        raise NoSecret(f"The environment variable {variable} is {'empty' if variable in environment else 'not set'}.")
    if not _VALUE.fullmatch(value):
        raise NoSecret(f"The environment variable {variable} has characters that a header cannot hold.")
    return value
