"""Access to an upstream: its address, the headers of each request with the key, and the removal of secrets from texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from core.metadata_addresses import is_metadata_address
from core.models.fields.upstream_headers import NoSecret, read_secrets, request_headers
from engine.config import UpstreamConfig
from engine.errors import ModelFailed

_PORTS: Final = {"http": 80, "https": 443}
_SHORTEST_SECRET: Final = 6
REDACTED: Final = "[redacted]"


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a `base_url`. `path` has no slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """The address as an operator reads it, without its path, which may hold a secret."""
        return f"{self.scheme}://{self.authority}"


def parse_address(url: str) -> Address:
    """Parse a `base_url`; raises ModelFailed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ModelFailed("`base_url` is not a valid address.") from None
    if parts.scheme not in _PORTS or not host or not url.isascii() or any(character <= " " for character in url):
        raise ModelFailed("`base_url` must be an address such as http://127.0.0.1:8000/v1.")
    if "@" in parts.netloc:
        raise ModelFailed("`base_url` must not hold a user or a password; name the variable of a key in `api_key_env`.")
    if "?" in url or "#" in url:
        raise ModelFailed("`base_url` must not have a query or a fragment.")
    check_host(host)
    return Address(parts.scheme, host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))


def check_host(host: str) -> None:
    """Refuse an address of a metadata service or of the link; names are checked when they are resolved. Raises ModelFailed."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return
    if is_metadata_address(address):
        raise ModelFailed(f"`base_url` must not lead to {address}: it is link-local, multicast or a metadata service.")


@dataclass(frozen=True, slots=True)
class Access:
    """The headers of every request, in lower case, and the texts that no message may contain."""

    headers: dict[str, str]
    secrets: tuple[str, ...]

    def redact(self, text: str) -> str:
        """Replace all secrets."""
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        return text


def read_access(config: UpstreamConfig, environment: Mapping[str, str]) -> Access:
    """Read the secrets from the environment, and fill in the headers, which were checked with their file; raises ModelFailed."""
    try:
        secrets = read_secrets(config.api_key_env, config.headers, environment)
    except NoSecret as error:
        raise ModelFailed(f"{error} The model file names it; set it where the worker is started.") from None
    filled = request_headers(config.api_key_env, config.headers, secrets)
    headers = {"user-agent": "millrace"} | {name.lower(): value for name, value in filled.items()}
    long_enough = {secret for secret in secrets.values() if len(secret) >= _SHORTEST_SECRET}
    return Access(headers, tuple(sorted(long_enough, key=len, reverse=True)))
