"""Webhook sender: signatures, the statuses that count as success, and forbidden addresses."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types.webhooks import BatchCompletedWebhookEvent

from core.metadata_addresses import IPAddress
from core.url_guard import UrlGuard
from tests.support.certificates import make_certificate, server_context
from tests.support.receiver import Receiver, SilentSocket
from workers.maintenance.webhook_sender import SendResult, WebhookRequest, WebhookSender

LOOPBACK = ip_network("127.0.0.0/8")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "b3RoZXIgc2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXM="
PAYLOAD = '{"id":"evt_1","object":"event","type":"batch.completed","created_at":1,"data":{"id":"batch_é"}}'


def webhook_request(url: str, *secrets: str) -> WebhookRequest:
    return WebhookRequest(event_id="evt_1", url=url, secrets=secrets or (SECRET,), payload=PAYLOAD)


async def post(url: str, rules: UrlGuard | None = None, *secrets: str, seconds: float = 5) -> SendResult:
    sender = WebhookSender(rules or UrlGuard(hosts=("*",), networks=(LOOPBACK,)), seconds=seconds)
    try:
        return await sender.send(webhook_request(url, *secrets))
    finally:
        sender.close()


async def test_the_official_client_accepts_what_arrives() -> None:
    with Receiver() as receiver:
        assert await post(receiver.url) == SendResult(status_code=200)
    (request,) = receiver.received
    event = OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=SECRET)
    assert isinstance(event, BatchCompletedWebhookEvent)
    assert (event.id, event.data.id) == ("evt_1", "batch_é")
    assert request.path == "/hook?from=millrace"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_1"
    assert abs(int(request.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=OTHER_SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="any").webhooks.unwrap(request.body + " ", request.headers, secret=SECRET)


async def test_while_a_secret_is_being_replaced_both_verify() -> None:
    with Receiver() as receiver:
        await post(receiver.url, None, SECRET, OTHER_SECRET)
    (request,) = receiver.received
    for secret in (SECRET, OTHER_SECRET):
        OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=secret)


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_every_2xx_is_a_success(status: int) -> None:
    with Receiver(status) as receiver:
        assert await post(receiver.url) == SendResult(status_code=status)


@pytest.mark.parametrize("status", [304, 400, 410, 429, 500, 503])
async def test_every_other_status_is_a_failure(status: int) -> None:
    with Receiver(status) as receiver:
        assert await post(receiver.url) == SendResult(status_code=status, error=f"The answer was HTTP {status}.")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(status: int) -> None:
    with SilentSocket() as inside, Receiver(status, location=f"http://127.0.0.1:{inside.port}/") as receiver:
        assert (await post(receiver.url)).status_code == status
        assert not inside.was_touched()
        assert len(receiver.received) == 1


async def test_a_receiver_that_is_not_there_is_a_failure_without_a_status() -> None:
    with SilentSocket() as gone:
        port = gone.port
    assert await post(f"http://127.0.0.1:{port}/") == SendResult(error="The connection failed (ConnectError).")


# Addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "u@localhost"]
)
async def test_sockets_of_this_machine_are_not_connected(host: str) -> None:
    with SilentSocket() as inside:
        for scheme in ("http", "https"):
            outcome = await post(f"{scheme}://{host}:{inside.port}/", UrlGuard(hosts=("*",)))
            assert outcome.status_code is None
            assert outcome.error
        assert not inside.was_touched()


async def test_hosts_that_are_not_allowed_are_not_connected() -> None:
    with SilentSocket() as inside:
        rules = UrlGuard(hosts=("hooks.example.com",), networks=(LOOPBACK,))
        assert "operator" in ((await post(f"http://127.0.0.1:{inside.port}/", rules)).error or "")
        assert not inside.was_touched()


async def test_a_name_is_resolved_once_and_the_checked_address_is_connected() -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[IPAddress]:
        asked.append(host)
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    with Receiver() as receiver:
        rules = UrlGuard(hosts=("*",), networks=(ip_network("127.0.0.1/32"),), lookup=rebinding)
        url = f"http://hooks.example.com:{receiver.port}/"
        assert await post(url, rules) == SendResult(status_code=200)
        assert asked == ["hooks.example.com"]
        assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"
        assert (await post(url, rules)).status_code is None, "the name is resolved for every request"
    assert len(receiver.received) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with SilentSocket() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await post(receiver.url) == SendResult(status_code=200)
        assert not proxy.was_touched()


# Slow receivers


class RawServer:
    """Sends the given bytes to each client, then repeats the last of them until the client has gone."""

    def __init__(self, *said: bytes) -> None:
        self._said = said
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            try:
                connection.recv(1 << 16)
                for part in self._said[:-1]:
                    connection.sendall(part)
                while self._said[-1]:
                    connection.sendall(self._said[-1])
                while connection.recv(1 << 16):
                    pass
            except OSError:
                return

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._socket.close()


@pytest.mark.parametrize("said", [(b"",), (b"HTTP/1.1 200 OK\r\nx: ", b"")], ids=["silence", "half a header"])
async def test_an_answer_that_does_not_come_in_time_is_a_failure(said: tuple[bytes, ...]) -> None:
    with RawServer(*said) as server:
        assert await post(server.url, seconds=0.3) == SendResult(error="No answer within 0.3 seconds.")


@pytest.mark.parametrize(
    "header", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x: y\r\n"], ids=["many answers", "many headers"]
)
async def test_an_answer_that_never_ends_is_a_failure(header: bytes) -> None:
    with RawServer(b"HTTP/1.1 100 Continue\r\n", header) as server:
        assert (await post(server.url, seconds=0.5)).error


async def test_the_body_of_an_answer_is_not_read() -> None:
    with RawServer(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n", b"x" * 65536) as server:
        assert await post(server.url) == SendResult(status_code=200)


async def test_an_answer_that_is_not_http_is_a_failure() -> None:
    with RawServer(b"220 mail.example.com ESMTP\r\n\r\n", b"") as server:
        assert await post(server.url) == SendResult(error="The connection failed (RemoteProtocolError).")


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own authority, for the name hooks.example.com."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "both.pem", "DNS:hooks.example.com")


@pytest.fixture
def secure(certificate: Path) -> Iterator[Receiver]:
    with Receiver(tls=server_context(certificate)) as receiver:
        yield receiver


async def post_secure(secure: Receiver, host: str, trusted: Path | None) -> SendResult:
    rules = UrlGuard(hosts=("*",), networks=(LOOPBACK,), lookup=lambda host, port: [ip_address("127.0.0.1")])
    sender = WebhookSender(rules, tls=ssl.create_default_context(cafile=trusted) if trusted else None)
    try:
        return await sender.send(webhook_request(f"https://{host}:{secure.port}/"))
    finally:
        sender.close()


async def test_the_certificate_is_checked_against_the_name_though_the_address_is_dialled(
    secure: Receiver, certificate: Path
) -> None:
    assert await post_secure(secure, "hooks.example.com", certificate) == SendResult(status_code=200)
    assert (await post_secure(secure, "other.example.com", certificate)).status_code is None
    assert (await post_secure(secure, "hooks.example.com", None)).status_code is None
    assert len(secure.received) == 1


def test_the_repr_of_a_request_has_no_secrets() -> None:
    assert SECRET not in repr(webhook_request("https://hooks.example.com/"))
