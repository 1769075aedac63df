"""B61 and B12 of validations, each a process of a second or two: they do not pile up, and other requests do not wait for
them.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select

from db.tables import Validation
from tests.hostile_input import raw
from tests.hostile_input.target import Target, batch_line
from tests.support.stack import wait_for


def num_waiting(target: Target) -> int:
    with target.guarded.database.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(Validation)).scalar_one())


def test_validations_over_the_limit_of_a_tenant_get_a_429_and_batches_continue(target: Target) -> None:
    """B61: a 429 with Retry-After; other requests are not affected."""
    file_id = target.upload(batch_line())
    with ThreadPoolExecutor(16) as threads:
        requests = [
            threads.submit(target.http.post, "/v1/batches/validate", json={"input_file_id": file_id}, timeout=100)
            for _ in range(16)
        ]
        assert target.batch_of(batch_line(), seconds=60).status == "completed"
        answers = [one.result() for one in requests]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = answers[statuses.index(429)]
    assert target.refused(refused, 429, "rate_limit_exceeded")["type"] == "validations"
    assert int(refused.headers["retry-after"]) > 0


def test_a_validation_ends_when_its_client_disconnects(target: Target) -> None:
    """B12: the validation is dropped when its caller disconnects."""
    body = json.dumps({"input_file_id": target.upload(batch_line())}).encode()
    auth = f"Authorization: Bearer {target.owner.text}"
    head = raw.request("POST", "/v1/batches/validate", auth, "Content-Type: application/json", body=body)
    waiting = [raw.connect(target.address) for _ in range(4)]
    for connection in waiting:
        connection.sendall(head)
    wait_for(lambda: num_waiting(target) > 0, "the questions are there")
    for connection in waiting:
        connection.close()
    wait_for(lambda: num_waiting(target) == 0, "no validation is waiting", 5)
