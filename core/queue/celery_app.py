"""The Celery application: tickets in, nothing out.

Every setting here has a reason that was measured: the database is the truth and recovery is by lease and sweep, so messages
are acknowledged at once, results are not kept, and one thread takes one message. Limits, revocation and soft shutdown do
nothing on the threads pool; `workers.consumers.shutdown` does them.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Celery

from core.queue.redis_transport import install_transport
from core.settings import Settings

VISIBILITY_SECONDS: Final = 600
_SEND_SECONDS: Final = 1.0


def make_celery(settings: Settings) -> Celery:
    """An application on the broker of the settings; tasks are added by each consumer."""
    assert settings.redis_url, "a process is started with the addresses it needs"
    install_transport()
    app = Celery("millrace", broker=broker_url(settings.redis_url), set_as_current=False)
    app.conf.update(
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
    """An application that consumes nothing: it fails at once rather than try again, as somebody waits for what it sends."""
    app = make_celery(settings)
    app.conf.broker_transport_options |= {
        "socket_timeout": _SEND_SECONDS,
        "socket_connect_timeout": _SEND_SECONDS,
        "max_retries": 0,
    }
    return app


def transport_options(settings: Settings) -> dict[str, Any]:  # Any: kombu's options
    """Options of kombu's Redis transport; `socket_timeout` must exceed its 1 s BRPOP."""
    return {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
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
    """redis-py's `unix://PATH?db=N` is `redis+socket://PATH?virtual_host=N` to kombu; others are the same to both."""
    if not redis_url.startswith("unix://"):
        return redis_url
    path, _, query = redis_url.removeprefix("unix://").partition("?")
    number = query.removeprefix("db=") or "0"
    return f"redis+socket://{path}?virtual_host={number}"
