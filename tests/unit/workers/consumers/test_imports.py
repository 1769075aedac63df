"""Consumers import nothing when they start: what the clones of a fork server import is not shared between them."""

from __future__ import annotations

import subprocess
import sys

STARTED = """
import sys
import workers.consumers.main
from celery.apps.worker import Worker
from core.queue.celery_app import make_celery
from core.settings import Settings

before = set(sys.modules)
app = make_celery(Settings(redis_url="redis://localhost:1/0"))
app.conf.worker_pool = "workers.consumers.celery_pool:Pool"

@app.task(name="any")
def task(): ...

Worker(app=app, queues=["any"], without_gossip=True, without_mingle=True, without_heartbeat=True)
print(*sorted(set(sys.modules) - before))
"""


def test_celery_loads_no_module_after_that_of_the_consumer() -> None:
    command = [sys.executable, "-W", "ignore", "-c", STARTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
