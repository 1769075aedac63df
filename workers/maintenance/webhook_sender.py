"""Webhook sender: one POST, signed by Standard Webhooks, to an address that the URL guard has checked.

Only the status of the answer is read: redirects are not followed, the body is dropped. One deadline covers everything, name
resolution included.
"""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx2
from standardwebhooks import Webhook as Signer

from core.failpoints import Point, failpoint
from core.metadata_addresses import IPAddress
from core.url_guard import Target, UrlGuard, UrlRefused

SEND_SECONDS: Final = 5.0
_RESOLVERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """One event for one URL. `secrets` sign it, the current one first; they are never logged."""

    event_id: str
    url: str
    secrets: tuple[str, ...]
    payload: str

    def __repr__(self) -> str:
        return f"WebhookRequest({self.event_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """`status_code` is None without an answer; `error` is None after a 2xx."""

    status_code: int | None = None
    error: str | None = None


def signed_headers(request: WebhookRequest, now: datetime) -> dict[str, str]:
    """The three headers by which a receiver checks the sender and recognises a repeated event."""
    signatures = [Signer(secret).sign(request.event_id, now, request.payload) for secret in request.secrets]
    return {
        "webhook-id": request.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class WebhookSender:
    """Sends webhook requests to addresses that the URL guard allows."""

    def __init__(
        self, url_guard: UrlGuard, *, seconds: float = SEND_SECONDS, tls: ssl.SSLContext | None = None
    ) -> None:
        self._url_guard = url_guard
        self._seconds = seconds
        self._tls = tls  # by default made for the first delivery, since it loads megabytes
        # Not the loop's own threads: a name service that hangs must not block other work.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "resolve")

    async def send(self, request: WebhookRequest) -> SendResult:
        """Send it once; never raises for errors of the network or the receiver."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._send(request)
        except UrlRefused as refused:
            return SendResult(error=str(refused))
        except TimeoutError:
            return SendResult(error=f"No answer within {self._seconds:g} seconds.")
        except (httpx2.HTTPError, OSError) as error:
            return SendResult(error=f"The connection failed ({type(error).__name__}).")

    async def _send(self, request: WebhookRequest) -> SendResult:
        target = self._url_guard.parse(request.url)
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._resolvers, self._url_guard.resolve, target)
        headers = {
            "host": target.authority,
            "content-type": "application/json",
            "user-agent": "millrace-webhooks",
            **signed_headers(request, datetime.now(UTC)),
        }
        failpoint(Point.WEBHOOK_SENDING)
        status = await self._status(target, addresses[0], headers, request.payload.encode())
        failpoint(Point.WEBHOOK_SENT)
        return SendResult(status_code=status, error=None if 200 <= status < 300 else f"The answer was HTTP {status}.")

    async def _status(self, target: Target, address: IPAddress, headers: dict[str, str], body: bytes) -> int:
        """Connect to the checked address, and check the certificate against the name.

        Proxies of the environment are not used, since they would resolve the name again. `send` has the deadline.
        """
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()
        url = httpx2.URL(scheme=target.scheme, host=str(address), port=target.port, raw_path=target.path.encode())
        name = {"sni_hostname": target.host}
        async with (
            httpx2.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=None) as client,
            client.stream("POST", url, content=body, headers=headers, extensions=name) as response,
        ):
            return response.status_code

    def close(self) -> None:
        """Stop without waiting for name services."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)
