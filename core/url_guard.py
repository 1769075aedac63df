"""URL guard: restricts webhooks to an allow-list of hosts, and to addresses of the public internet.

A URL of a caller makes this machine open a connection from inside its network, where the database, the metadata service of
its cloud and services of others are. So the URL has one strict spelling, its host is resolved once, every address is checked,
and the connection goes to a checked address, not to the name. To be called before each connection: names change.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from core.errors import MillraceError
from core.metadata_addresses import METADATA_NETWORKS, IPAddress, plain_address
from core.settings import Settings, split_commas

IPNetwork = IPv4Network | IPv6Network
Lookup = Callable[[str, int], list[IPAddress]]

_MAX_URL: Final = 2048
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_LOWEST_PORT: Final = 1024  # mail, shells and name servers have ports below it; 443 is the exception
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
# Global by the registry, or in the tables of some Python versions, but not the internet: machine services of
# clouds, addresses of protocols, and IPv6 spellings of IPv4 addresses.
_NEVER: Final = (
    *METADATA_NETWORKS,
    *map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")),
)


class UrlRefused(MillraceError):
    """The guard refuses this URL; the message may be shown to the caller."""


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL. `path` begins with a slash and includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def look_up(host: str, port: int) -> list[IPAddress]:
    """Resolve a name to all its addresses, in the system's order; none when it has none. Blocks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlGuard:
    """Checks URLs against the hosts and networks that the operator allows.

    `hosts` are names, `.example.com` for all below one, `*` for all; with none, every URL is refused. `networks` are
    private ranges that are allowed, too; there, http and any port are accepted.
    """

    hosts: tuple[str, ...]
    networks: tuple[IPNetwork, ...] = ()
    lookup: Lookup = look_up

    def parse(self, url: str) -> Target:
        """Parse a URL in the strict spelling with an allowed host. Does not resolve the host. Raises UrlRefused."""
        target = _parse(url)
        if not any(_matches(target.host, pattern) for pattern in self.hosts):
            raise UrlRefused("This server does not send webhooks to this host; its operator can allow it.")
        return target

    def resolve(self, target: Target) -> list[IPAddress]:
        """Return the addresses to connect to, at least one. Blocks while the name is resolved. Raises UrlRefused.

        One address that is not allowed refuses them all, always with the same message, so that a caller cannot probe names
        of the server's network.
        """
        literal = _literal(target.host)
        addresses = [literal] if literal is not None else self.lookup(target.host, target.port)
        if addresses and all(self._is_named(address) for address in addresses):
            return addresses
        if not addresses or not all(self._is_named(address) or _is_public(address) for address in addresses):
            raise UrlRefused("The host has no address, or one that webhooks may not be sent to.")
        if target.scheme != "https":
            raise UrlRefused("The url must begin with https://.")
        if target.port != _DEFAULT_PORTS["https"] and target.port < _LOWEST_PORT:
            raise UrlRefused(f"The port must be {_DEFAULT_PORTS['https']}, or {_LOWEST_PORT} or higher.")
        return addresses

    def _is_named(self, address: IPAddress) -> bool:
        plain = plain_address(address)
        return any(plain in network for network in self.networks)


def url_guard(settings: Settings) -> UrlGuard:
    """Create the guard from the settings."""
    networks = tuple(map(ip_network, split_commas(settings.webhook_networks)))
    return UrlGuard(hosts=split_commas(settings.webhook_hosts), networks=networks)


def _parse(url: str) -> Target:
    if len(url) > _MAX_URL:
        raise UrlRefused(f"The url is longer than {_MAX_URL} characters.")
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise UrlRefused("The url has characters that must be escaped.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise UrlRefused("The url is not a valid one.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise UrlRefused("The url must begin with https://.")
    if "@" in parts.netloc:
        raise UrlRefused("The url must not hold a user or a password.")
    if "#" in url:
        raise UrlRefused("The url must not have a fragment.")
    _check_host(host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _check_host(host: str) -> None:
    """Accept a name, or an address in its usual spelling: resolvers also accept `127.1`, `2130706433` and `0x7f.1`."""
    if _literal(host) is not None:
        return
    labels = host.split(".")
    is_name = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not is_name or _NUMBER.fullmatch(labels[-1]):
        raise UrlRefused("The url's host is neither a name nor an address in its usual spelling.")


def _literal(host: str) -> IPAddress | None:
    if "%" in host:  # a zone is not part of the internet
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _matches(host: str, pattern: str) -> bool:
    pattern = pattern.lower()
    return pattern in ("*", host) or (pattern.startswith(".") and host.endswith(pattern))


def _is_public(address: IPAddress) -> bool:
    plain = plain_address(address)
    if isinstance(plain, IPv6Address) and plain not in _GLOBAL_UNICAST:
        return False
    return plain.is_global and not plain.is_multicast and not any(plain in network for network in _NEVER)
