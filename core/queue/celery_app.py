"""The Celery application: it delivers tickets, and returns no results.

The database has the state of all work, and recovery is by leases and sweeps. So messages are acknowledged at once, results
are not stored, and one thread takes one message. Limits, revocation and soft shutdown have no effect on the threads pool;
`workers.consumers.shutdown` replaces them.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from celery import Celery
from redis.connection import parse_url

from core.queue.redis_transport import install_transport
from core.settings import Settings

_SEND_SECONDS: Final = 1.0


def make_celery(settings: Settings) -> Celery:
    """Create an application on the broker of the settings; each consumer adds its tasks."""
    assert settings.redis_url, "a process is started with the addresses it needs"
    install_transport()
    app = Celery("millrace", broker=broker_url(settings.redis_url), set_as_current=False)
    app.conf.update(
        broker_use_ssl=broker_tls(settings.redis_url),
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_create_missing_queues=True,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_soft_shutdown_timeout=0,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=transport_options(settings),
    )
    return app


def make_sender(settings: Settings) -> Celery:
    """Create an application that only sends: it fails at once instead of retrying, since a request waits for it."""
    app = make_celery(settings)
    app.conf.broker_transport_options |= {
        "socket_timeout": _SEND_SECONDS,
        "socket_connect_timeout": _SEND_SECONDS,
        "max_retries": 0,
    }
    return app


def transport_options(settings: Settings) -> dict[str, Any]:  # Any: kombu's options
    """Return the options of kombu's Redis transport; `socket_timeout` must exceed its 1 s BRPOP."""
    return {
        "priority_steps": [0],  # one list for each queue, since no ticket has a priority
        "ack_emulation": False,  # two round trips for each ticket; of a lost one the row is found again
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "max_connections": 20,
        "retry_on_timeout": False,
        "global_keyprefix": settings.key_prefix,
        "client_name": "millrace",
    }


def broker_url(redis_url: str) -> str:
    """Translate a URL of redis-py to one of kombu, which has other names for the same options.

    `unix://PATH?db=N` becomes `redis+socket://PATH?virtual_host=N`. Of a TCP URL only user, password, host, port and database
    remain: kombu takes each option as an argument of its own connection, and fails on those that it does not have.
    """
    if not redis_url.startswith("unix://"):
        number = _redis_options(redis_url).get("db", 0)
        return urlsplit(redis_url)._replace(path=f"/{number}", query="").geturl()
    path, _, query = redis_url.removeprefix("unix://").partition("?")
    number = query.removeprefix("db=") or "0"
    return f"redis+socket://{path}?virtual_host={number}"


def broker_tls(redis_url: str) -> dict[str, Any] | None:  # Any: redis-py's options
    """Return the `ssl_*` options of a `rediss://` URL; None for others. Without any, kombu would connect in plain text."""
    if not redis_url.startswith("rediss://"):
        return None
    options = {name: value for name, value in _redis_options(redis_url).items() if name.startswith("ssl_")}
    return {"ssl_cert_reqs": "required", **options}


def _redis_options(redis_url: str) -> dict[str, Any]:  # Any: redis-py's options
    return dict(parse_url(redis_url))  # type: ignore[no-untyped-call]  # redis-py has no type for it
