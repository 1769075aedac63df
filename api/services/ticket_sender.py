"""Send tickets from the event loop: with a deadline, since a frozen broker must not block a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.services.redis_client import valkey_client
from core.queue.names import RUN_CHAT, chat_queue
from core.queue.ticket_message import ticket_message
from core.queue.tickets import Tickets

log = structlog.get_logger()

_SEND_SECONDS: Final = 2.0
_TIMEOUT_SECONDS: Final = 1.0  # of one command


class TicketSender:
    """Sends tickets of chats by a client of the event loop, since a first token waits for them; others in a small thread pool."""

    def __init__(self, tickets: Tickets, redis_url: str, key_prefix: str) -> None:
        self._tickets = tickets
        once = Retry(NoBackoff(), 1)  # on a new connection, if an idle one was closed; a second ticket does no harm
        limits = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
        self._client = valkey_client(redis_url, retry=once, **limits)
        self._prefix = key_prefix
        self._threads = ThreadPoolExecutor(8, "tickets")

    async def run_chat(self, job_id: str, model: str) -> bool:
        """Ask a worker of this model to claim this job; return whether the broker took the ticket in time."""
        if self._tickets.is_backing_off:
            return False
        queue = chat_queue(model)
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._client.lpush(self._prefix + queue, ticket_message(RUN_CHAT, job_id, queue))
        except (RedisError, OSError) as error:  # TimeoutError is one
            log.warning("ticket_lost", task=RUN_CHAT, queue=queue, reason=str(error))
            self._tickets.back_off()
            return False
        return True

    async def send(self, action: Callable[[Tickets], bool]) -> bool:
        """Return whether the broker took the ticket in time; the sweeper sends it later if not."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, action, self._tickets), _SEND_SECONDS)
        except TimeoutError:
            self._tickets.back_off()
            return False

    async def close(self) -> None:
        """Close the client, and shut the pool down without waiting for a frozen broker."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._client.aclose()
