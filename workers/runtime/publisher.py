"""Publishes events of running jobs from one thread; all events that have queued up go out in one round trip.

Best effort: the relay fills the gap of a lost event from the row. Publishing never delays generation.
"""

from __future__ import annotations

import queue
import threading
from typing import Final

import redis
import structlog

from core.failpoints import Point, failpoint
from core.queue.events import Event, EventKind, encode_event
from core.queue.names import job_channel, replay_key

log = structlog.get_logger()

REPLAY_EVENTS: Final = 2048
REPLAY_SECONDS: Final = 300


class Publisher:
    """Publishes events of any thread, in order."""

    def __init__(self, client: redis.Redis, key_prefix: str) -> None:
        self._redis = client
        self._prefix = key_prefix
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def publish(self, event: Event) -> None:
        """Queue an event; never blocks and never raises."""
        self._queue.put(event)

    def close(self) -> None:
        """Send the queued events, then stop."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            events = [event]
            is_closing = False
            while not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    is_closing = True
                    break
                events.append(more)
            self._send(merge(events))
            if is_closing:
                return

    def _send(self, events: list[Event]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for event in events:
            data = encode_event(event)
            key = self._prefix + replay_key(event.job)
            pipeline.rpush(key, data)
            pipeline.expire(key, REPLAY_SECONDS)  # with each event: a job may stream for longer than that
            if event.seq % 256 == 0:
                pipeline.ltrim(key, -REPLAY_EVENTS, -1)
            pipeline.publish(self._prefix + job_channel(event.job), data)
        try:
            failpoint(Point.PUBLISH_SENDING)
            pipeline.execute()
            failpoint(Point.PUBLISH_SENT)
        except redis.RedisError as error:
            self.num_dropped += len(events)
            log.warning("events_dropped", number=len(events), reason=str(error))
        except Exception as error:  # the edge of this thread: the next events must go out
            self.num_dropped += len(events)
            log.error("events_dropped", number=len(events), exc_info=error)


def merge(events: list[Event]) -> list[Event]:
    """Join consecutive frames of one job into one event; the order within a job stays."""
    merged: dict[str, Event] = {}
    out: list[Event] = []
    for event in events:
        open_event = merged.get(event.job)
        if open_event is not None and event.kind is EventKind.FRAMES and event.attempt == open_event.attempt:
            open_event.frames.extend(event.frames)
            continue
        if event.kind is EventKind.FRAMES:
            event = Event(
                job=event.job, attempt=event.attempt, seq=event.seq, kind=event.kind, frames=list(event.frames)
            )
            merged[event.job] = event
        else:
            merged.pop(event.job, None)
        out.append(event)
    return out
