"""Batches that run one after the other while something happens to a fleet, and the check of all that was done."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.load import expected_answer, start_batch, wait_batch
from tests.fleet.fleet import Fleet
from tests.support.stack import wait_for

WAIT_SECONDS: Final = 120.0


class Batches:
    """Keeps one batch after the other running until the end of the block; `ids` are all of them."""

    def __init__(self, fleet: Fleet, num_lines: int = 48) -> None:
        self._fleet, self._num_lines = fleet, num_lines
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ids: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(2 * WAIT_SECONDS)
        if kind is None:
            assert not self._thread.is_alive(), "a batch did not end"
            if self._failure is not None:
                raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.ids.append(start_batch(self._fleet, self._num_lines))
                wait_batch(self._fleet, self.ids[-1], timeout_seconds=WAIT_SECONDS)
        except BaseException as error:
            self._failure = error


def check_batches(fleet: Fleet, *batch_ids: str) -> None:
    """Check that each batch has completed, with each line once, in order, and with the right answer."""
    for batch_id in batch_ids:
        assert wait_batch(fleet, batch_id, timeout_seconds=WAIT_SECONDS) == "completed"
        batch = fleet.retry(lambda: fleet.client.batches.retrieve(batch_id))  # noqa: B023
        wanted = {
            line["custom_id"]: line["body"]["messages"][0]["content"] for line in _lines(fleet, batch.input_file_id)
        }
        answers = [
            (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"])
            for line in _lines(fleet, batch.output_file_id)
        ]
        assert batch.error_file_id is None
        assert [custom_id for custom_id, _ in answers] == list(wanted), f"{batch_id}: each line once, in order"
        wrong = [(wanted[custom_id], text) for custom_id, text in answers if text != expected_answer(wanted[custom_id])]
        assert not wrong, f"{batch_id}: {wrong[:3]}"


def check_usage(fleet: Fleet) -> None:
    """Check that no line and no chat of the fleet was written twice: the usage counts each response once."""
    open_jobs = "SELECT id FROM jobs WHERE state IN ('queued', 'running')"
    wait_for(lambda: not fleet.query(open_jobs), "all work ends", WAIT_SECONDS)
    (counted,) = fleet.query("SELECT sum(requests), sum(completion_tokens) FROM usage_daily")
    (answered,) = fleet.query("SELECT count(*), sum(completion_tokens) FROM jobs WHERE state = 'completed'")
    assert tuple(map(int, counted)) == tuple(map(int, answered))


def _lines(fleet: Fleet, file_id: str | None) -> list[Any]:
    assert file_id is not None
    content = fleet.retry(lambda: fleet.client.files.content(file_id).content)
    return [json.loads(line) for line in content.splitlines()]
