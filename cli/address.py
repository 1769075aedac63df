"""The address of the server, and the API key: as they were given, with what people leave out, or those of this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cli.errors import CommandFailed, ExitCode
from cli.state_lock import running_launcher

if TYPE_CHECKING:
    from core.settings import Settings

_ENDPOINT: Final = re.compile(r"(/v1)/(?:chat|completions|embeddings|responses|models|batches|files|uploads)\b.*$")
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what to call instead


def api_url(given: str) -> str:
    """Complete an address: `localhost:8000` is `http://localhost:8000/v1`. Raises CommandFailed for one that is none."""
    text = given.strip()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise _no_address(given, str(error)) from None
    if parts.scheme.lower() not in ("http", "https"):
        raise _no_address(given, f"{parts.scheme}:// is not HTTP")
    if not parts.hostname or re.search(r"\s", text):
        raise _no_address(given, "it names no host")
    path = _ENDPOINT.sub(r"\1", parts.path.rstrip("/"))
    return f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"


def local_url(settings: Settings) -> str:
    """Return the address of this machine's server: of the port that is set, else of the stack that runs, else the default."""
    if not settings.port or "port" not in settings.model_fields_set:
        launcher = running_launcher(settings.state_dir)
        if launcher is not None and launcher.url:
            return f"{launcher.url}/v1"
    host = host_to_call(settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port or 8000}/v1"


def host_to_call(host: str) -> str:
    """Return the host at which a server of this machine that listens on `host` can be called."""
    return _ANY_ADDRESS.get(host, host)


def api_key(given: str) -> str:
    """Return the key without spaces around it; an empty one is any text, which a server without keys takes."""
    key = given.strip()
    if not all("!" <= char <= "~" for char in key):
        message = (
            "The API key has a space, a line break or a letter that no key has. Correct OPENAI_API_KEY or --api-key."
        )
        raise CommandFailed(message, ExitCode.USAGE)
    return key or "none"


def _no_address(given: str, reason: str) -> CommandFailed:
    message = f"{given!r} is not the address of a server ({reason}). An address is such as http://127.0.0.1:8000/v1"
    return CommandFailed(f"{message}: correct OPENAI_BASE_URL or --base-url.", ExitCode.USAGE)
