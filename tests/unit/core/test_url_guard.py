"""The URL guard: allowed and refused URLs."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from core.errors import ConfigError
from core.metadata_addresses import IPAddress
from core.settings import Settings, load_settings
from core.url_guard import UrlGuard, UrlRefused, look_up, url_guard

PUBLIC = "93.184.215.14"
EVERYWHERE = ("*",)


def guard(*answers: str, networks: tuple[str, ...] = (), hosts: tuple[str, ...] = EVERYWHERE) -> UrlGuard:
    """Create a guard with a name service that has one answer."""

    def lookup(host: str, port: int) -> list[IPAddress]:
        return [ip_address(answer) for answer in answers]

    return UrlGuard(hosts=hosts, networks=tuple(map(ip_network, networks)), lookup=lookup)


def is_allowed(url: str, checked: UrlGuard) -> bool:
    try:
        return bool(checked.resolve(checked.parse(url)))
    except UrlRefused:
        return False


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", f"::ffff:{PUBLIC}"])
def test_a_public_host_may_be_reached(address: str) -> None:
    assert is_allowed("https://hooks.example.com/a?b=c", guard(address))


PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "169.254.169.254", "192.0.0.192", "168.63.129.16", "198.18.0.1", "203.0.113.9", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::7f00:1",
    "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:a00:1::",
    "2001:0:a00:1::", "2001:db8::1", "3fff::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused(address: str) -> None:
    assert not is_allowed("https://hooks.example.com/", guard(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_itself_is_refused(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    assert not is_allowed(f"https://{host}/", guard(PUBLIC))


def test_one_private_address_among_public_ones_refuses_them_all() -> None:
    assert not is_allowed("https://hooks.example.com/", guard(PUBLIC, "10.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd", "gopher://hooks.example.com/",
        "https:hooks.example.com", "https:///x", "//hooks.example.com/", "hooks.example.com", "", "https://",
        "https://user@hooks.example.com/", "https://user:pw@hooks.example.com/", "https://@hooks.example.com/",
        "https://hooks.example.com\\@10.0.0.1/", "https://hooks.example.com\\.evil.example/", "https://a b.example.com/",
        "https://hooks.example.com/a b", "https://hooks.example.com/\r\nx: y", "https://hooks.example.com/\x00",
        "https://hooks.example.com/\tx", " https://hooks.example.com/", "https://hooks.example.com/#x",
        "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://127.1/", "https://0177.0.0.1/",
        "https://127.0.0.1./", "https://[::1%25lo]/", "https://[::1/", "https://[not-an-address]/",
        "https://１２７.0.0.1/", "https://ⓛocalhost/", "https://hooks..example.com/", "https://-x.example.com/",
        "https://%31%32%37.0.0.1/", "https://hooks.example.com:0/", "https://hooks.example.com:22/",
        "https://hooks.example.com:99999/", "https://hooks.example.com:x/", "https://hooks.example.com:25/",
        "https://" + "a" * 64 + ".example.com/", "https://hooks.example.com/" + "a" * 3000,
    ],
)  # fmt: skip
def test_a_url_of_another_spelling_scheme_or_port_is_refused(url: str) -> None:
    assert not is_allowed(url, guard(PUBLIC))


def test_a_url_is_parsed_into_its_parts() -> None:
    target = guard(PUBLIC).parse("https://Hooks.Example.com.:8443?a=1")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "hooks.example.com", 8443, "/?a=1")
    assert target.authority == "hooks.example.com:8443"
    assert guard(PUBLIC).parse("https://[2606:4700::1]/").authority == "[2606:4700::1]"


def test_only_hosts_that_the_operator_named_are_allowed() -> None:
    named = guard(PUBLIC, hosts=("hooks.example.com", ".Example.org"))
    assert is_allowed("https://HOOKS.example.com/", named)
    assert is_allowed("https://a.b.example.org/", named)
    for host in ("example.com", "x.hooks.example.com", "example.org", "badexample.org", "example.org.evil.net"):
        assert not is_allowed(f"https://{host}/", named), host
    assert not is_allowed("https://hooks.example.com/", guard(PUBLIC, hosts=()))


def test_a_named_network_may_be_reached_by_http_and_at_any_port_and_no_other() -> None:
    named = ("10.1.0.0/16", "127.0.0.0/8")
    assert is_allowed("http://inside.example.com:25/", guard("10.1.2.3", networks=named))
    assert is_allowed("http://127.0.0.1:8080/", guard(networks=named))
    assert is_allowed("http://[::ffff:127.0.0.1]:8080/", guard(networks=named))
    assert not is_allowed("http://inside.example.com/", guard("10.2.0.1", networks=named))
    assert not is_allowed("http://inside.example.com/", guard("10.1.2.3", PUBLIC, networks=named))


def test_a_refusal_does_not_reveal_the_addresses_of_a_name() -> None:
    said = set()
    for answers in ((), ("10.0.0.1",), ("127.0.0.1",)):
        with pytest.raises(UrlRefused) as refused:
            guard(*answers).resolve(guard().parse("http://inside.example.com:22/"))
        said.add(str(refused.value))
    assert len(said) == 1


def test_the_system_resolves_this_machine_and_no_unknown_name() -> None:
    assert ip_address("127.0.0.1") in look_up("localhost", 80)
    assert look_up("no-such-host.invalid", 80) == []


def test_settings_name_hosts_and_networks_with_commas() -> None:
    settings = Settings(webhook_hosts="hooks.example.com, .example.org", webhook_networks="10.1.0.0/16,::1")
    named = url_guard(settings)
    assert named.hosts == ("hooks.example.com", ".example.org")
    assert named.networks == (ip_network("10.1.0.0/16"), ip_network("::1/128"))
    assert url_guard(Settings()).hosts == ()


def test_a_wrong_network_is_named_at_the_start() -> None:
    with pytest.raises(ConfigError, match="webhook[_-]networks"):
        load_settings(webhook_networks="10.0.0.1/8")
