"""Entry point of a Celery consumer: `python -m workers.consumers.main clerk`, or `… chat|batch --link SOCKET --slot NAME`.

Builds the consumer of this kind with its dependencies, then runs Celery's worker in this process.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import redis
from celery import Celery, signals
from celery.apps.worker import Worker
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.errors import MillraceError
from core.files.open_store import open_file_store
from core.logs import configure_logging
from core.models.live_catalog import LiveCatalog
from core.process.child_process import exit_with, notify_ready
from core.process.hangup import on_hangup
from core.process.signs_of_life import WITHIN_SECONDS, Phase, Role, SignsOfLife
from core.queue.celery_app import make_celery, make_sender
from core.queue.tickets import Tickets
from core.settings import Settings, load_settings
from core.states import BatchState
from core.telemetry.tracing import start_tracing
from db import jobs, shards
from db.connections import ConnectionLosses, database_engine
from db.schema_version import check_schema
from workers.consumers.base import Consumer, ModelConsumer
from workers.consumers.batch import BatchConsumer
from workers.consumers.chat import ChatConsumer
from workers.consumers.clerk import ClerkConsumer
from workers.consumers.model_follower import ModelFollower
from workers.consumers.shutdown import GracefulShutdown
from workers.context import ClerkContext, Database, ServedModel, WorkerContext
from workers.heartbeat import Identity, WorkerHeartbeat, clerk_identity, consumer_identity
from workers.metrics.server import open_metrics_server
from workers.metrics.snapshots import SnapshotSocket, snapshot_socket
from workers.residency.link import LinkClient
from workers.runtime.leases import LeaseKeeper, Renew, Renewed
from workers.runtime.publisher import Publisher
from workers.runtime.request_metrics import RequestMetrics

# Modules that others import when they first use them. Imported here, the clones of a fork server share them.
_LOADED_LATE: Final = (
    "billiard.pool",
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.backends.base",
    "celery.events.receiver",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "encodings.utf_8_sig",
    "kombu.mixins",
    "kombu.pidbox",
    "workers.consumers.celery_pool",
)
for _module in _LOADED_LATE:
    importlib.import_module(_module)

_TICK_IS_OLD_SECONDS: Final = 5.0
_BROKER_SECONDS: Final = 3.0
_SWITCH_SECONDS: Final = 0.0005  # the first token of a chat waits for the thread of another one's ticket
_COLLECTED_AFTER: Final = (50_000, 20, 100)  # objects: lines make thousands at a time, which are no garbage
_CLERK_CONNECTIONS: Final = 15  # for all its threads; one of them stays open


def _worker_context(settings: Settings, identity: Identity, client: redis.Redis, own: Database) -> WorkerContext:
    losses = ConnectionLosses()
    database = Database(database_engine(settings.database_url or "", pool_size=10, losses=losses))
    models: dict[str, ServedModel] = {}

    def is_alive(model: str) -> bool:
        served = models.get(model)
        return served is not None and served.engine.seconds_since_tick(time.monotonic()) < _TICK_IS_OLD_SECONDS

    return WorkerContext(
        settings=settings,
        owner=identity.id,
        database=database,
        claims=Database(database_engine(settings.database_url or "", pool_size=5, async_commit=True, losses=losses)),
        models=models,
        leases=LeaseKeeper(
            _renewal(settings, identity.kind, own),
            is_alive,
            heartbeat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
        ),
        tickets=Tickets(make_sender(settings)),
        publisher=Publisher(client, settings.key_prefix),
        metrics=RequestMetrics(identity.kind, max_tenants=settings.metrics_tenants),
    )


def _renewal(settings: Settings, kind: str, own: Database) -> Renew:
    """The statement that renews leases, on a pool that only the heartbeat shares, so that no other thread can use it up."""
    with own.begin():
        pass  # opens the connection before others can take the server's last one
    lease = timedelta(seconds=settings.lease_seconds)

    def renew(held: Mapping[str, int]) -> Iterable[Renewed]:
        with own.begin() as connection:
            if kind == "chat":
                return [Renewed(*row) for row in jobs.renew_jobs(held, lease).fetch_all(connection)]
            rows = shards.renew_shards(held, lease).fetch_all(connection)
            return [Renewed(row.id, row.fence, row.status is not BatchState.IN_PROGRESS) for row in rows]

    return renew


def _build(identity: Identity, settings: Settings, app: Celery, own: Database) -> Consumer:
    client = redis.Redis.from_url(
        settings.redis_url or "",
        socket_timeout=_BROKER_SECONDS,
        socket_connect_timeout=_BROKER_SECONDS,
        retry=Retry(NoBackoff(), 0),  # messages sent through it may get lost, but must not be waited for
    )
    if identity.kind == "clerk":
        check_schema(own.engine)
        files = open_file_store(settings)
        files.check()
        context = ClerkContext(
            settings=settings,
            database=own,
            live_catalog=LiveCatalog(settings.models_dir),
            files=files,
            tickets=Tickets(make_sender(settings)),
            publisher=Publisher(client, settings.key_prefix),
        )
        return ClerkConsumer(app, context)
    worker = _worker_context(settings, identity, client, own)
    check_schema(worker.database.engine)
    return ChatConsumer(app, worker, client) if identity.kind == "chat" else BatchConsumer(app, worker, client)


def _heartbeat(
    settings: Settings, identity: Identity, consumer: Consumer, own: Database, signs: SignsOfLife | None
) -> WorkerHeartbeat:
    def on_turn() -> None:
        if signs is not None:
            signs.give(problem=consumer.problem(time.monotonic()))

    seconds = settings.heartbeat_seconds
    return WorkerHeartbeat(identity, own, lambda: consumer.status(time.monotonic()), seconds=seconds, on_turn=on_turn)


def _signs_of_life(settings: Settings, kind: str) -> SignsOfLife | None:
    """Return the signs of a clerk; for the consumers of a worker its launcher gives them."""
    within_seconds = WITHIN_SECONDS + settings.heartbeat_seconds
    return SignsOfLife(settings.state_dir, Role.CLERK, within_seconds=within_seconds) if kind == "clerk" else None


def _serve_metrics(consumer: Consumer, settings: Settings, kind: str, link: Path | None) -> None:
    """Hand metrics to the launcher, or serve them if there is none. Does nothing unless the settings name a port."""
    if settings.metrics_port is None:
        return
    if link is not None:
        SnapshotSocket(snapshot_socket(link, kind), consumer.recorder.snapshot).start()
        return
    from workers.metrics.families import clerk_exposition  # prometheus_client, only where it is used

    open_metrics_server(settings, lambda: clerk_exposition(consumer.recorder.snapshot()))


def main() -> None:
    """Run the consumer until it is stopped."""
    gc.set_threshold(*_COLLECTED_AFTER)
    sys.setswitchinterval(_SWITCH_SECONDS)
    parser = argparse.ArgumentParser(description="One Celery consumer of a Millrace worker.")
    parser.add_argument("kind", choices=["chat", "batch", "clerk"])
    parser.add_argument("--link", type=Path, help="the socket of the launcher")
    parser.add_argument("--slot", default="", help="the launcher's name for this consumer and those that replace it")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        start_tracing(arguments.kind)
        app = make_celery(settings)
        app.conf.worker_pool = "workers.consumers.celery_pool:Pool"
        identity = clerk_identity() if arguments.kind == "clerk" else consumer_identity(arguments.kind, arguments.slot)
        most = _CLERK_CONNECTIONS if identity.kind == "clerk" else 3  # a worker's renew its leases and report
        own = Database(database_engine(settings.database_url or "", pool_size=1, max_connections=most))
        consumer = _build(identity, settings, app, own)
        signs = _signs_of_life(settings, identity.kind)
        _serve_metrics(consumer, settings, arguments.kind, arguments.link)
    except (MillraceError, TimeoutError) as error:
        exit_with(arguments.kind, error)
    heartbeat = _heartbeat(settings, identity, consumer, own, signs)

    def on_drain() -> None:
        if signs is not None:
            signs.give(Phase.STOPPING)
        heartbeat.close()

    shutdown = GracefulShutdown(consumer, settings.drain_seconds, on_drain)

    def on_ready(sender: Any, **_: Any) -> None:  # Any: what Celery's signal carries
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, shutdown.on_signal)
        on_hangup(consumer.hangup)  # in place of Celery's restart
        heartbeat.claim_slot()
        consumer.start()
        heartbeat.start()
        if isinstance(consumer, ModelConsumer):
            consumer.control.attach(sender)
            follower = ModelFollower(consumer, identity.id, heartbeat.wake)
            link = LinkClient(arguments.link, arguments.kind, follower)
            consumer.on_work = link.begin_work
            link.start()
        notify_ready()

    signals.worker_ready.connect(on_ready, weak=False)
    name = f"{arguments.kind}-{os.getpid()}@{socket.gethostname()}"
    worker = Worker(  # Celery's own command would import a prompt toolkit
        app=app,
        hostname=name,
        concurrency=consumer.threads,
        queues=consumer.queues,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
