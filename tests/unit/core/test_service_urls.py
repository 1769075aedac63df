"""A server that cannot be reached is named by host, port, reason and remedy, and never by its password."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from core.errors import Unreachable
from core.queue.reachable import check_queue
from core.service_urls import check_database_url, check_redis_url, database_unreachable, host_and_port
from db.connections import database_engine
from db.schema_version import check_schema, upgrade


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, and which nothing else takes meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_database_that_is_not_there_is_one_sentence(closed_port: int) -> None:
    engine = database_engine(f"postgresql://me:secret@127.0.0.1:{closed_port}/x", pool_size=1)
    said = (
        f"The database at 127.0.0.1:{closed_port} cannot be used: connection refused. "
        "Start Postgres there, or correct DATABASE_URL."
    )
    for act in (check_schema, upgrade):
        with pytest.raises(Unreachable) as caught:
            act(engine)
        assert str(caught.value) == said
    engine.dispose()


def test_a_queue_that_is_not_there_is_one_sentence(closed_port: int) -> None:
    with pytest.raises(Unreachable) as caught:
        check_queue(f"redis://:secret@127.0.0.1:{closed_port}/0")
    said = (
        f"The queue at 127.0.0.1:{closed_port} cannot be used: connection refused. "
        "Start Valkey or Redis there, or correct REDIS_URL."
    )
    assert str(caught.value) == said


def test_a_host_that_does_not_exist_is_the_reason() -> None:
    with pytest.raises(
        Unreachable, match=r"The queue at no\.such\.host\.invalid:6379 cannot be used: .*known|resolution"
    ):
        check_queue("redis://no.such.host.invalid/0")
    engine = database_engine("postgresql://no.such.host.invalid/x", pool_size=1)
    with pytest.raises(Unreachable, match=r"The database at no\.such\.host\.invalid:5432 cannot be used"):
        check_schema(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: FATAL:  database "x" does not exist',
            'cannot be used: database "x" does not exist. Create it (createdb x), or correct DATABASE_URL.',
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: FATAL:  password authentication '
            'failed for user "me"',
            'password authentication failed for user "me". Correct the user and the password in DATABASE_URL',
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: root certificate file "/ca.pem" does '
            "not exist\nEither provide the file",
            "Name the certificate of its authority in DATABASE_URL: ?sslrootcert=",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: SSL error: certificate verify failed',
            "Name the certificate of its authority in DATABASE_URL: ?sslrootcert=",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: server certificate for "db.test" does '
            'not match host name "db"',
            "Use a name of its certificate as the host in DATABASE_URL",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: server does not support SSL, but SSL '
            "was required",
            "The server has no TLS on this port",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 5432 failed: FATAL:  no pg_hba.conf entry for host '
            '"10.0.0.2", user "me", database "x", no encryption',
            "If the server wants TLS on this port, write ?sslmode=verify-full",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 6432 failed: FATAL:  unsupported startup parameter '
            "in options: statement_timeout",
            "ignore_startup_parameters = options",
        ),
        (
            'connection failed: connection to server at "10.0.0.1", port 6432 failed: FATAL:  SASL authentication failed',
            "Correct the user and the password in DATABASE_URL",
        ),
        ("connection timeout expired", "cannot be used: connection timeout expired. Start Postgres there"),
    ],
)
def test_the_reason_decides_the_advice(error: str, said: str) -> None:
    failure = str(database_unreachable("postgresql://me:secret@db/x", Exception(error)))
    assert said in failure
    assert failure.startswith("The database at db:5432")
    assert "secret" not in failure


def test_addresses_are_named_as_they_are_found() -> None:
    assert host_and_port("postgresql:///x?host=/run/postgres", 5432) == "/run/postgres"
    assert host_and_port("unix:///run/valkey.sock?db=0", 6379) == "/run/valkey.sock"
    assert host_and_port("redis://[::1]:1/0", 6379) == "[::1]:1"


def test_common_spellings_of_addresses_are_taken() -> None:
    for url in ("postgres://a/b", "postgresql+psycopg://a:5/b", "postgresql:///b?host=/run"):
        assert check_database_url(url) == url
    for url in ("redis://mine", "rediss://:p@a:1/0", "unix:///run/s?db=0"):
        assert check_redis_url(url) == url


def test_tls_options_in_a_url_without_tls_are_refused() -> None:
    with pytest.raises(ValueError, match="rediss://"):
        check_redis_url("redis://:p@host:6380/0?ssl_ca_certs=/etc/ca.pem")
    assert check_redis_url("rediss://host:6380/0?ssl_ca_certs=/etc/ca.pem")
    assert check_redis_url("redis://:ssl_@host:6379/0")


def test_an_option_that_does_not_exist_is_one_sentence(closed_port: int) -> None:
    with pytest.raises(Unreachable, match="no_such_option"):
        check_queue(f"redis://127.0.0.1:{closed_port}/0?no_such_option=1")


@pytest.mark.parametrize("option", ["no_such_option=1", "sslmode=verify-everything"])
def test_a_wrong_option_of_the_database_is_one_sentence(closed_port: int, option: str) -> None:
    engine = database_engine(f"postgresql://me:secret@127.0.0.1:{closed_port}/x?{option}", pool_size=1)
    with pytest.raises(Unreachable, match="Correct the part of DATABASE_URL behind the question mark"):
        check_schema(engine)
    engine.dispose()
