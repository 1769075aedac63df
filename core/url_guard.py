"""Where webhooks may be sent: an allow-list of hosts, and of those only addresses of the public internet.

A URL that a caller names makes this machine open a connection, and this machine stands where the caller does not: beside
the database, the metadata service of its cloud, other people's services. So the URL has one strict spelling, its host is
resolved once, every address is looked at, and the connection goes to an address that was looked at, not to the name.
Ask before each connection: what a name means changes.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from core.errors import MillraceError
from core.settings import Settings, split_commas

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Lookup = Callable[[str, int], list[IPAddress]]

_MAX_URL: Final = 2048
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_LOWEST_PORT: Final = 1024  # below it live mail, shells and name servers; 443 is the exception
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
# Global by the registry, or by what some Python versions know of it, and yet not the internet: machine services of
# clouds, protocols' own addresses, and IPv6 spellings of IPv4 addresses.
_NEVER: Final = tuple(
    map(
        ip_network,
        ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"),
    )
)


class UrlRefused(MillraceError):
    """This URL may not be connected to; the message is fit for whoever named it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart. `path` begins with a slash and includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the `Host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def look_up(host: str, port: int) -> list[IPAddress]:
    """All addresses of a name, in the system's order; none where it has none. Blocks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlGuard:
    """What an operator allows.

    `hosts` are names, `.example.com` for all below one, `*` for all; with none, nothing may be reached. `networks` are
    ranges that may be reached although they are private; there, http and any port will do.
    """

    hosts: tuple[str, ...]
    networks: tuple[IPNetwork, ...] = ()
    lookup: Lookup = look_up

    def parse(self, url: str) -> Target:
        """The URL, if its spelling is the plain one and its host is allowed. Does not ask the name service."""
        target = _take_apart(url)
        if not any(_matches(target.host, pattern) for pattern in self.hosts):
            raise UrlRefused("This server does not send webhooks to this host; its operator can allow it.")
        return target

    def resolve(self, target: Target) -> list[IPAddress]:
        """Addresses that may be connected to, at least one; blocks while the name service is asked.

        One bad address refuses them all, and every refusal says the same: the caller shall not learn what a name of
        this machine's network means.
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
        plain = _plain(address)
        return any(plain in network for network in self.networks)


def url_guard(settings: Settings) -> UrlGuard:
    """What the operator of this installation allows."""
    networks = tuple(map(ip_network, split_commas(settings.webhook_networks)))
    return UrlGuard(hosts=split_commas(settings.webhook_hosts), networks=networks)


def _take_apart(url: str) -> Target:
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
    """A name, or an address in its usual spelling: resolvers also read `127.1`, `2130706433` and `0x7f.1`."""
    if _literal(host) is not None:
        return
    labels = host.split(".")
    is_name = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not is_name or _NUMBER.fullmatch(labels[-1]):
        raise UrlRefused("The url's host is neither a name nor an address in its usual spelling.")


def _literal(host: str) -> IPAddress | None:
    if "%" in host:  # a zone: never of the internet
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _matches(host: str, pattern: str) -> bool:
    pattern = pattern.lower()
    return pattern in ("*", host) or (pattern.startswith(".") and host.endswith(pattern))


def _plain(address: IPAddress) -> IPAddress:
    """`::ffff:10.0.0.1` is 10.0.0.1 to the kernel."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_public(address: IPAddress) -> bool:
    plain = _plain(address)
    if isinstance(plain, IPv6Address) and plain not in _GLOBAL_UNICAST:
        return False
    return plain.is_global and not plain.is_multicast and not any(plain in network for network in _NEVER)
