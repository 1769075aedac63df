"""Failed callers: live jobs that wait for a model which cannot be loaded fail at once, with the reason.

Its lines wait as before: `workers.maintenance.missing_models` ends them after a grace, and the batch shows what it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.queue.celery_app import make_sender
from core.queue.names import WANTED_CHANNEL
from core.queue.tickets import Tickets
from core.readiness import ModelState, ModelStatus, not_ready
from core.settings import Settings
from db.missing_models import fail_jobs
from workers.context import Database
from workers.residency.demand import DemandReader
from workers.runtime.channel_listener import ChannelListener
from workers.runtime.failed_jobs import announce_failures
from workers.runtime.publisher import Publisher

log = structlog.get_logger()

_BROKER_SECONDS: Final = 3.0


@dataclass(slots=True)
class _Broker:
    publisher: Publisher
    tickets: Tickets


class FailedCallers:
    """Fails jobs in the thread of the demand reader. The broker is connected to when it is first needed."""

    def __init__(self, settings: Settings, database: Database, demand: DemandReader) -> None:
        self._settings = settings
        self._database = database
        self._demand = demand

    def start(self) -> None:
        """Listen to the channel on which the api sends the names of models that are waited for."""
        channel = self._settings.key_prefix + WANTED_CHANNEL
        ChannelListener(self._client, channel, self._demand.wish).start()

    def fail(self, model: str, reason: str) -> None:
        """Fail the jobs that wait for a model, unless another launcher may serve them."""
        self._demand.call(lambda: self._fail(model, reason))

    def _fail(self, model: str, reason: str) -> None:
        if self._demand.waiting.may_be_served_elsewhere(model):
            return
        problem = not_ready(
            ModelState(model=model, status=ModelStatus.FAILED, reason=f"its engine does not start: {reason}")
        )
        with self._database.begin() as connection:
            failed = fail_jobs(model, problem.to_json()).fetch_all(connection)
        if failed:
            log.error("waiting_jobs_failed", model=model, jobs=len(failed))
            announce_failures(failed, problem, self._broker.publisher.publish, self._broker.tickets)

    @cached_property
    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self._settings.redis_url or "",
            socket_timeout=_BROKER_SECONDS,
            socket_connect_timeout=_BROKER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    @cached_property
    def _broker(self) -> _Broker:
        return _Broker(Publisher(self._client, self._settings.key_prefix), Tickets(make_sender(self._settings)))
