"""The JSON of a batch's line is parsed twice at most: when its batch is prepared, and when it runs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pydantic_core
import pytest

from core import ids
from core.schemas.endpoints import CHAT_ENDPOINT
from db import files
from db.tables import DEFAULT_TENANT
from engine.process.client import EngineLost
from engine.types import Finished, Request
from tests.support.rows import make_batch
from tests.support.scripted_engine import ScriptedEngine, echo
from workers.batches.prepare import prepare
from workers.context import ClerkContext, WorkerContext
from workers.shards.lanes import ShardLanes

CONTENTS = ["plain", "identical", "identical", "identical", "sampled", "sampled", "poison", "poison"]


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts parsed documents by the content that they have in them."""
    counts: Counter[str] = Counter()
    from_json = pydantic_core.from_json

    def count(data: bytes, **options: Any) -> Any:
        counts.update(content for content in set(CONTENTS) if content.encode() in data)
        return from_json(data, **options)

    monkeypatch.setattr(pydantic_core, "from_json", count)
    return counts


def prepare_batch(clerk: ClerkContext) -> None:
    lines = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": CHAT_ENDPOINT,
            "body": {
                "model": "fake",
                "messages": [{"role": "user", "content": content}],
                "temperature": 1 if content == "sampled" else 0,
            },
        }
        for number, content in enumerate(CONTENTS)
    ]
    file_id, data = ids.new_id(ids.FILE), "\n".join(json.dumps(line) for line in lines).encode()
    with clerk.files.write(file_id) as stream:
        stream.write(data)
    with clerk.database.begin() as connection:
        connection.execute(
            files.add_file(id=file_id, tenant_id=DEFAULT_TENANT, purpose="batch", filename="in.jsonl", bytes=len(data))
        )
        batch_id = make_batch(connection, file_id=file_id)
    prepare(clerk, batch_id)


def test_a_line_is_parsed_when_it_is_prepared_and_when_it_runs(
    clerk: ClerkContext, worker: WorkerContext, engine: ScriptedEngine, parses: Counter[str]
) -> None:
    """Also where lines share an answer, run again after crashes, or are blocked: in the second batch before they run."""

    def answer(request: Request) -> Finished | None:
        if request.prompt.messages[0]["content"] != "poison":  # type: ignore[union-attr]
            return echo(request)
        for key in list(engine.running):
            engine.end(key, EngineLost(request_id=key))
        return None

    engine.answer = answer
    for num_asked in (1 + 1 + 2 + worker.settings.line_attempts, 1 + 1 + 2):
        parses.clear()
        engine.asked.clear()
        prepare_batch(clerk)
        assert parses == Counter(CONTENTS)
        ShardLanes(worker, worker.models["fake"]).work()
        assert parses == Counter(CONTENTS) + Counter(set(CONTENTS)), "lines with one body share the second"
        assert len(engine.asked) == num_asked
