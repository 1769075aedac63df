"""One webhook request: signed as Standard Webhooks says, sent to an address that was looked at, and judged by its status.

Nothing the receiver says but its status is read: no redirect is followed, no body is taken, and all of it, name service
included, has one deadline.
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
from core.url_guard import IPAddress, Target, UrlGuard, UrlRefused

SEND_SECONDS: Final = 5.0
_RESOLVERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """What is sent where. `secrets` are those that sign it, the current one first; never logged."""

    event_id: str
    url: str
    secrets: tuple[str, ...]
    payload: str

    def __repr__(self) -> str:
        return f"Letter({self.event_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """`status_code` is None where no answer came; `error` is None where it was a 2xx."""

    status_code: int | None = None
    error: str | None = None


def signed_headers(letter: WebhookRequest, now: datetime) -> dict[str, str]:
    """The three headers by which a receiver knows us, and knows an event again."""
    signatures = [Signer(secret).sign(letter.event_id, now, letter.payload) for secret in letter.secrets]
    return {
        "webhook-id": letter.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class WebhookSender:
    """Posts letters to where the rules allow."""

    def __init__(self, rules: UrlGuard, *, seconds: float = SEND_SECONDS, tls: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._seconds = seconds
        self._tls = tls or httpx2.create_ssl_context()
        # Not the loop's own threads: a name service that hangs must not keep anybody from going on.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "resolve")

    async def post(self, letter: WebhookRequest) -> SendResult:
        """Send it once; never raises for what the world does."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(letter)
        except UrlRefused as refused:
            return SendResult(error=str(refused))
        except TimeoutError:
            return SendResult(error=f"No answer within {self._seconds:g} seconds.")
        except (httpx2.HTTPError, OSError) as error:
            return SendResult(error=f"The connection failed ({type(error).__name__}).")

    async def _post(self, letter: WebhookRequest) -> SendResult:
        target = self._rules.parse(letter.url)
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._resolvers, self._rules.resolve, target)
        headers = {
            "host": target.authority,
            "content-type": "application/json",
            "user-agent": "millrace-webhooks",
            **signed_headers(letter, datetime.now(UTC)),
        }
        failpoint(Point.WEBHOOK_SENDING)
        status = await self._status(target, addresses[0], headers, letter.payload.encode())
        failpoint(Point.WEBHOOK_SENT)
        return SendResult(status_code=status, error=None if 200 <= status < 300 else f"The answer was HTTP {status}.")

    async def _status(self, target: Target, address: IPAddress, headers: dict[str, str], body: bytes) -> int:
        """The connection goes to the address; the certificate is checked against the name.

        Proxies of the environment are not used, since they would ask the name service again. `post` has the deadline.
        """
        url = httpx2.URL(scheme=target.scheme, host=str(address), port=target.port, raw_path=target.path.encode())
        name = {"sni_hostname": target.host}
        async with (
            httpx2.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=None) as client,
            client.stream("POST", url, content=body, headers=headers, extensions=name) as response,
        ):
            return response.status_code

    def close(self) -> None:
        """Do not wait for name services."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)
