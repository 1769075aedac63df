"""A queue with TLS: each mistake in its URL is one sentence that names the remedy. The bundled Valkey has no TLS of its own."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from cli.doctor.findings import Finding, Level
from cli.doctor.queue import queue_findings
from cli.stack.services import Services
from core.queue.celery_app import make_sender
from core.settings import Settings
from tests.support.forwarder import Forwarder


class TlsQueue:
    """Valkey behind TLS on a port of loopback, with a certificate of an authority of its own."""

    def __init__(self, folder: Path, socket_path: str, name: str) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        self.forwarder = Forwarder(socket.create_server(("127.0.0.1", 0)), socket_path, tls=context)
        self.address = f"127.0.0.1:{self.forwarder.port}/0"
        self.trusted = f"?ssl_ca_certs={folder / 'ca.pem'}"


@pytest.fixture
def queue(services: Services, tmp_path: Path) -> Iterator[TlsQueue]:
    made = TlsQueue(tmp_path, services.redis_url.removeprefix("unix://").partition("?")[0], "127.0.0.1")
    with made.forwarder:
        yield made


def first(url: str) -> Finding:
    return queue_findings(url)[0]


def test_celery_and_the_doctor_reach_it_with_its_authority(queue: TlsQueue) -> None:
    url = f"rediss://{queue.address}{queue.trusted}"
    assert first(url).level is Level.OK
    with make_sender(Settings(redis_url=url)).connection_for_write() as connection:
        client = connection.default_channel.client
        assert client.ping()
        client.connection_pool.disconnect()


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("rediss://{address}", "Name the certificate of its authority in REDIS_URL: ?ssl_ca_certs="),
        ("rediss://{address}?ssl_ca_certs=/nowhere/ca.pem", "?ssl_ca_certs="),
        ("redis://{address}", "If the server wants TLS on this port, write rediss://"),
    ],
)
def test_each_mistake_names_its_remedy(queue: TlsQueue, url: str, advice: str) -> None:
    finding = first(url.format(address=queue.address))
    assert finding.level is Level.BAD
    assert advice in finding.advice
    assert "_ssl.c" not in finding.message


def test_a_certificate_of_another_name_is_refused(services: Services, tmp_path: Path) -> None:
    other = TlsQueue(tmp_path, services.redis_url.removeprefix("unix://").partition("?")[0], "elsewhere.test")
    with other.forwarder:
        finding = first(f"rediss://{other.address}{other.trusted}")
    assert finding.level is Level.BAD
    assert "a name of its certificate" in finding.advice
