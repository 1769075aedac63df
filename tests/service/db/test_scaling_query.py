"""The query by which KEDA scales a class of workers, as the chart renders it, on a real Postgres."""

from __future__ import annotations

from sqlalchemy import Connection, text

from core.states import ModelAction
from db import model_requests
from tests.support.rows import make_job, make_running_batch
from tests.unit.deploy.chart import render


def query(models: list[str]) -> str:
    """The query of a class that works on ten chats or a hundred lines at a time."""
    keda = {"enabled": True, "chatsPerReplica": 10, "linesPerReplica": 100}
    manifests = render({"workers": {"cpu": {"models": models, "keda": keda}}})
    (scaled,) = [each for each in manifests if each["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def test_the_work_of_a_class_is_what_waits_for_its_models(connection: Connection) -> None:
    def replicas(*models: str) -> float:
        value = connection.exec_driver_sql(query(list(models))).scalar_one()
        assert isinstance(value, float), "KEDA reads a float"
        return value

    assert replicas() == replicas("a", "org/b") == 0
    for model in ("a", "a", "a", "org/b"):
        make_job(connection, model)
    connection.execute(
        text("UPDATE jobs SET state='running', owner='w', lease_until=now(), started_at=now() WHERE model='org/b'")
    )
    assert (replicas(), replicas("a"), replicas("org/b"), replicas("c")) == (0.4, 0.3, 0.1, 0)
    running, _ = make_running_batch(connection, (20, 30), model="a")
    paused, _ = make_running_batch(connection, (40,), model="org/b")
    connection.execute(text("UPDATE batches SET paused_at = now() WHERE id = :id"), {"id": paused})
    connection.execute(
        text(
            "UPDATE shards SET state = 'running', owner = 'w', lease_until = now(), lines_completed = 4, lines_failed = 1 "
            "WHERE batch_id = :id AND position = 0"
        ),
        {"id": running},
    )
    assert (replicas("a"), replicas("org/b")) == (0.3 + 0.45, 0.1), "running lines count, paused ones do not"
    connection.execute(model_requests.add_request("c", ModelAction.PIN))
    assert (replicas("c"), replicas("a")) == (1, 0.75)
