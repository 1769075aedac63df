"""Search of logs: everything about an id and what belongs to it, in the order of time, over rotated files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.log_search import LogLine, Wanted, log_files, search


def entry(second: int, event: str, **ids: str) -> str:
    return json.dumps({"event": event, **ids, "timestamp": f"2026-11-30T00:00:{second:02}.5Z"}) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "api.log.1").write_text(entry(1, "request", request_id="r1", job="j1"))
    (tmp_path / "api.log").write_text(
        entry(2, "request", request_id="r2", batch="b1")
        + entry(8, "request", request_id="r3", path="/v1/batches/b1")
        + entry(9, "request", request_id="r10", job="j10")
    )
    (tmp_path / "chat.log").write_text(entry(3, "job_completed", request_id="r1", job="j1", trace_id="t1"))
    (tmp_path / "batch.log").write_text(
        entry(4, "shard_left", request_id="r2", batch="b1", shard="s1", failed_lines="l1")
        + "Traceback of l1\n"
        + entry(5, "shard_left", request_id="r2", batch="b1", shard="s2")
    )
    (tmp_path / "postgres.log").write_text("2026-11-30 00:00:06.1 UTC [1] ERROR: about j1\nDETAIL: more\n")
    (tmp_path / "notes.txt").write_text("j1\n")
    return tmp_path


def found(folder: Path, *ids: str, shard: str | None = None) -> list[LogLine]:
    return list(search(log_files(folder), Wanted(ids=frozenset(ids), shard=shard)))


def places(lines: list[LogLine]) -> list[tuple[str, int]]:
    return [(line.process, int(line.at[17:19])) for line in lines]


def test_a_request_leads_to_its_job_in_every_process(folder: Path) -> None:
    assert places(found(folder, "r1")) == [("api", 1), ("chat", 3), ("postgres", 6)]


@pytest.mark.parametrize("wanted", ["j1", "t1"])
def test_a_job_and_a_trace_lead_to_their_request(folder: Path, wanted: str) -> None:
    assert places(found(folder, wanted)) == [("api", 1), ("chat", 3), ("postgres", 6)]


def test_a_batch_leads_to_its_request_and_shards_and_to_calls_about_it(folder: Path) -> None:
    assert places(found(folder, "b1")) == [("api", 2), ("batch", 4), ("batch", 5), ("api", 8)]


def test_a_line_leads_to_its_own_shard_alone(folder: Path) -> None:
    lines = found(folder, "l1", "b1", shard="s1")
    assert places(lines) == [("api", 2), ("batch", 4), ("batch", 4), ("api", 8)]
    assert lines[2].text == "Traceback of l1", "it has the time of the line before"


def test_a_part_of_an_id_is_another_id(folder: Path) -> None:
    assert places(found(folder, "j10")) == [("api", 9)]
    assert found(folder, "j") == []
    assert found(folder, "nothing.*") == []
