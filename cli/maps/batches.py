"""The batches of one mapping, those of earlier commands included: sent side by side, followed, and read when they end."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from cli.batches.text import error_text
from cli.client import Client, Json
from cli.errors import CommandFailed, ExitCode, Refused, TryAgainLater
from cli.maps.mapping import Chunk, Mapping
from core.states import FINAL_BATCH_STATES, BatchState
from mapping.answers import Answers
from mapping.disk_map import DiskMap
from mapping.join import PlanCounts, PlannedRow, new_requests
from mapping.row_mapper import Request

KEY: Final = "map"  # of the metadata: the batches of a mapping have the same value
POLL_SECONDS: Final = 0.25
_POLLED: Final = 8  # batches that are asked for at a time
_PAGE: Final = 100
_GONE: Final = 404
_Result = TypeVar("_Result")


class _InputLine(msgspec.Struct, frozen=True):
    custom_id: str


_read_input: Final = msgspec.json.Decoder(_InputLine).decode


@dataclass(kw_only=True)
class MapBatches:
    """Sends requests and collects their answers.

    `asked` has the requests of all batches, those of another command that runs with the id of its batch. Of batches that ended
    before `since`, no answer is used. `show` gets the sum of the batches; `restart_dead` is called between polls.
    """

    client: Client
    answers: Answers
    asked: DiskMap
    key: str
    since: float
    name: str
    endpoint: str
    window: str
    priority: int | None = None
    show: Callable[[Json], None]
    restart_dead: Callable[[], None]
    salt: str = ""  # the newest batch of the mapping: the same requests in a later batch are another one
    ids: list[str] = field(default_factory=list)
    _open: dict[str, Json] = field(default_factory=dict)
    _running: dict[str, Json] = field(default_factory=dict)
    _turns: deque[str] = field(default_factory=deque)
    _num_lines: dict[str, int] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    _started_at: float = field(default_factory=time.time)

    def find_earlier(self) -> None:
        """Read the answers of earlier batches of this mapping, and the requests of those that have not ended."""
        params: dict[str, str | int] = {f"metadata[{KEY}]": self.key, "limit": _PAGE}
        listed = self.client.patiently(lambda: list(self.client.pages("/batches", **params)))
        ours = [
            each for each in listed if (each.get("metadata") or {}).get(KEY) == self.key
        ]  # older servers do not filter
        for batch in sorted(ours, key=_id, reverse=True):  # of two answers, the newer one is kept
            self.salt = max(self.salt, batch["id"])
            while batch["status"] == BatchState.CANCELLING:
                time.sleep(POLL_SECONDS)
                batch = self.client.batch(batch["id"])
            if batch["status"] not in FINAL_BATCH_STATES:
                self._running[batch["id"]] = batch
                self._num_lines[batch["id"]] = self._read_requests(batch)
            elif batch["created_at"] >= self.since:
                self._read(batch["output_file_id"])

    def requests(self, mapping: Mapping, counts: PlanCounts) -> Iterator[Request]:
        """Yield the different requests that have no answer and are in no batch; follows batches that have some of the others."""
        planned = mapping.planned()
        return new_requests(self._followed(planned) if self._running else planned, counts, self.asked, self.answers)

    def send(self, chunk: Chunk) -> None:
        """Upload a file of requests and start its batch. Waits while a limit of the server is reached."""
        once = hashlib.sha256(f"{self.key} {chunk.digest} {self.salt}".encode()).hexdigest()
        metadata = {"name": self.name, KEY: self.key}

        file_id = self._persist(
            lambda: self.client.send_file("map.jsonl", chunk.rewound(), "batch", once=f"file-{once}")
        )["id"]
        batch = self._persist(
            lambda: self.client.create_batch(file_id, self.endpoint, self.window, metadata, once=f"batch-{once}")
        )
        if self.priority is not None:
            path_of_batch, change = f"/batches/{batch['id']}", {"priority": self.priority}
            batch = self._persist(lambda: self.client.patch(path_of_batch, change))
        self.salt = batch["id"]
        self._follow(batch, chunk.num_lines)

    def finish(self) -> None:
        """Wait until all batches have ended, and read their answers."""
        while self._open:
            self._poll()
            if self._open:
                time.sleep(POLL_SECONDS)

    @property
    def total(self) -> Json:
        """Return the sum of the batches in the form of one."""
        still = list(self._open.values())
        counts = dict(self._ended)
        for batch in still:
            part = batch["request_counts"]
            counts["total"] += part["total"] or self._num_lines[batch["id"]]
            counts["completed"] += part["completed"]
            counts["failed"] += part["failed"]
        rates = [batch["tokens_per_second"] for batch in still if batch.get("tokens_per_second") is not None]
        ends = [batch.get("eta_at") for batch in still]
        first = next((each for each in still if each["status"] == BatchState.IN_PROGRESS), still[0] if still else {})
        return {
            **first,
            "status": first.get("status", BatchState.COMPLETED),
            "request_counts": counts,
            "created_at": self._started_at,
            "tokens_per_second": sum(rates) if rates else None,
            "eta_at": max((end for end in ends if end is not None), default=None) if None not in ends else None,
        }

    def _followed(self, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
        """Follow each batch of another command when a row needs it."""
        for each in planned:
            if each.request is not None and each.request.custom_id not in self.answers:
                batch_id = (self.asked.get(each.request.custom_id.encode()) or b"").decode()
                if (batch := self._running.pop(batch_id, None)) is not None:
                    self._follow(batch, self._num_lines[batch_id])
            yield each

    def _persist(self, call: Callable[[], _Result]) -> _Result:
        """Call again while the server restarts or has reached a limit."""
        while True:
            try:
                return self.client.patiently(call, waits_for_limits=False)
            except TryAgainLater as refusal:
                until = time.monotonic() + refusal.seconds
            while time.monotonic() < until:
                self._poll()
                time.sleep(POLL_SECONDS)

    def _follow(self, batch: Json, num_lines: int) -> None:
        self.ids.append(batch["id"])
        self._open[batch["id"]] = batch
        self._num_lines[batch["id"]] = num_lines
        self._turns.append(batch["id"])
        self.show(self.total)

    def _poll(self) -> None:
        """Ask for some of the open batches, in turn, and read those that have ended."""
        self.restart_dead()
        for _ in range(min(_POLLED, len(self._turns))):
            batch_id = self._turns.popleft()
            batch = self._open[batch_id] = self.client.batch(batch_id)
            if batch["status"] in FINAL_BATCH_STATES:
                self._end(batch)
            else:
                self._turns.append(batch_id)
        self.show(self.total)

    def _end(self, batch: Json) -> None:
        """Read what a batch has answered; one that expired goes on as a new one. Raises CommandFailed for others."""
        counts, status = batch["request_counts"], batch["status"]
        has_expired = status == BatchState.EXPIRED and counts["completed"] > 0
        if status != BatchState.COMPLETED and not has_expired:
            raise CommandFailed(_stopped(batch), ExitCode.BATCH_DID_NOT_COMPLETE)
        self._read(batch["output_file_id"])
        del self._open[batch["id"]]
        self._ended["completed"] += counts["completed"]
        self._ended["total"] += counts["completed"]
        if has_expired:
            retry = f"/batches/{batch['id']}/retry"
            self._follow(self._persist(lambda: self.client.post(retry)), counts["failed"])
            return
        self._read(batch["error_file_id"])
        self._ended["total"] += counts["failed"]
        self._ended["failed"] += counts["failed"]

    def _read(self, file_id: str | None) -> None:
        """Add the lines of a result file to the answers, unless the file is gone."""
        if file_id is None:
            return
        try:
            self.client.patiently(lambda: self.answers.add(self.client.content_lines(file_id)))
        except Refused as refusal:
            if refusal.status != _GONE:
                raise

    def _read_requests(self, batch: Json) -> int:
        """Note the requests that a batch has; returns their number."""
        mark = batch["id"].encode()

        def read() -> int:
            number = 0
            for line in self.client.content_lines(batch["input_file_id"]):
                self.asked.put(_read_input(line).custom_id.encode(), mark)
                number += 1
            return number

        return self.client.patiently(read)


def _id(batch: Json) -> str:
    return str(batch["id"])


def _stopped(batch: Json) -> str:
    counts, status = batch["request_counts"], batch["status"]
    if status == BatchState.FAILED:
        errors = "".join(f"\n  {error_text(error)}" for error in (batch["errors"] or {}).get("data", []))
        return f"The server did not accept {batch['id']}:{errors}"
    verb = "expired" if status == BatchState.EXPIRED else "was cancelled"
    answered = f"{counts['completed']:,} of {counts['total']:,} requests"
    return f"{batch['id']} {verb} after {answered}. Nothing was written; the same command asks for the others."
