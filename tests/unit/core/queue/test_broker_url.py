"""URLs of the queue: Celery's connection gets the same server, database and TLS as redis-py's."""

from __future__ import annotations

import pytest
from kombu.transport.redis import Channel

from core.queue.celery_app import broker_url, make_celery
from core.settings import Settings


def connection_options(url: str) -> dict[str, object]:
    """Return the options with which Celery's broker connection would connect."""

    class Offline(Channel):
        def __init__(self, connection: object) -> None:  # without asking the server
            self.connection = connection

    with make_celery(Settings(redis_url=url)).connection_for_write() as connection:
        channel = Offline(connection.transport)
        channel.connection.client = connection
        return dict(channel._connparams())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", "redis://host/0"),
        ("redis://user:p%40ss@host:7000/3", "redis://user:p%40ss@host:7000/3"),
        ("redis://host?db=2", "redis://host/2"),
        ("redis://host/0?socket_timeout=5", "redis://host/0"),
        ("unix:///run/valkey.sock?db=1", "redis+socket:///run/valkey.sock?virtual_host=1"),
    ],
)
def test_the_broker_has_the_server_and_database_of_the_url(url: str, expected: str) -> None:
    assert broker_url(url) == expected


def test_a_url_with_tls_never_connects_in_plain_text() -> None:
    bare = connection_options("rediss://:secret@host:6380/0")
    assert issubclass(bare["connection_class"], Channel.connection_class_ssl)  # type: ignore[arg-type]
    assert bare["ssl_cert_reqs"] == "required"
    named = connection_options("rediss://host/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false")
    assert (named["ssl_ca_certs"], named["ssl_check_hostname"]) == ("/etc/ca.pem", False)
    assert not issubclass(connection_options("redis://host/0")["connection_class"], Channel.connection_class_ssl)  # type: ignore[arg-type]
