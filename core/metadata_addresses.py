"""Addresses at which a cloud or a link answers its machines, such as the metadata service: never the target of a request.

Imports no settings, so that an engine may use it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

IPAddress = IPv4Address | IPv6Address

METADATA_NETWORKS: Final = (
    IPv4Network("168.63.129.16/32"),  # Azure
    IPv4Network("100.100.100.200/32"),  # Alibaba Cloud
    IPv4Network("192.0.0.192/32"),  # Oracle Cloud
    IPv6Network("fd00:ec2::254/128"),  # AWS
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def plain_address(address: IPAddress) -> IPAddress:
    """Map an address such as `::ffff:10.0.0.1` to 10.0.0.1, as the kernel does."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_metadata_address(address: IPAddress) -> bool:
    """Is it link-local, multicast or that of a metadata service, in any of its spellings?"""
    plain = plain_address(address)
    if isinstance(plain, IPv6Address):
        if plain.sixtofour is not None:
            plain = plain.sixtofour
        elif plain in _NAT64:
            plain = IPv4Address(int(plain) & 0xFFFFFFFF)
    return plain.is_link_local or plain.is_multicast or any(plain in network for network in METADATA_NETWORKS)
