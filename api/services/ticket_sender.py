"""Send tickets from the event loop: in a thread and with a deadline, since a frozen broker must not block a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from core.queue.tickets import Tickets

_SEND_SECONDS: Final = 2.0


class TicketSender:
    """Runs each send in a small thread pool."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets
        self._threads = ThreadPoolExecutor(8, "tickets")

    async def send(self, action: Callable[[Tickets], bool]) -> bool:
        """Return whether the broker took the ticket in time; the sweeper sends it later if not."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, action, self._tickets), _SEND_SECONDS)
        except TimeoutError:
            self._tickets.back_off()
            return False

    def close(self) -> None:
        """Shut the pool down without waiting for a frozen broker."""
        self._threads.shutdown(wait=False, cancel_futures=True)
