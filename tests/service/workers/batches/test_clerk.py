"""Prepare, finalize and sweep on a real database and file store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import redis
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from core import ids
from core.counters import CounterName
from core.files.directory import DirectoryStore
from core.models.live_catalog import LiveCatalog
from core.schemas.endpoints import EMBEDDINGS_ENDPOINT
from core.states import BatchState, JobState
from db import batch_results, batches, files, jobs, shards
from db.jobs import Provenance
from db.shards import LineResult
from db.tables import DEFAULT_TENANT, Batch, File, Job, Shard
from tests.support.contexts import with_settings
from tests.support.model_files import write_model
from tests.support.rows import make_batch, make_job, make_running_batch
from tests.support.sick import SickDatabase
from tests.support.stored import names_in, size_in
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.context import ClerkContext
from workers.maintenance.sweeper import Sweeper

URL = "/v1/chat/completions"


def line(custom_id: str, model: str = "fake", url: str = URL, **body: Any) -> str:
    chat = {"model": model, "messages": [{"role": "user", "content": custom_id}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": chat})


def upload(clerk: ClerkContext, content: str | bytes, endpoint: str = URL) -> str:
    """A batch that waits for prepare; returns its id."""
    file_id = ids.new_id(ids.FILE)
    data = content if isinstance(content, bytes) else content.encode()
    with clerk.files.write(file_id) as stream:
        stream.write(data)
    with clerk.database.begin() as connection:
        connection.execute(
            files.add_file(id=file_id, tenant_id=DEFAULT_TENANT, purpose="batch", filename="in.jsonl", bytes=len(data))
        )
        return make_batch(connection, file_id=file_id, endpoint=endpoint)


def batch_of(clerk: ClerkContext, batch_id: str) -> Any:
    with clerk.database.begin() as connection:
        return connection.execute(select(Batch.__table__).where(Batch.id == batch_id)).one()


def errors_of(clerk: ClerkContext, batch_id: str) -> list[dict[str, Any]]:
    errors: list[dict[str, Any]] = json.loads(batch_of(clerk, batch_id).errors_json)["data"]
    return errors


def read_file(clerk: ClerkContext, file_id: str) -> list[dict[str, Any]]:
    with clerk.files.open(file_id) as stream:
        return [json.loads(one) for one in stream.read().splitlines()]


def answer_everything(clerk: ClerkContext, *, fail: frozenset[str] = frozenset(), keep_open: int = 0) -> None:
    """Do the work of the workers: end all lines but `keep_open` of each shard."""
    with clerk.database.begin() as connection:
        while (claim := shards.claim_next_shard("fake", "w", timedelta(60)).fetch_optional(connection)) is not None:
            lines = connection.execute(
                select(Job.id, Job.custom_id).where(Job.shard_id == claim.id, Job.state == "queued").order_by(Job.line)
            ).all()
            results = [
                LineResult(job_id=job_id, problem='{"status":500,"message":"no","code":"engine_crash"}')
                if custom_id in fail
                else LineResult(
                    job_id=job_id, answer=f'{{"text": "{custom_id}"}}', prompt_tokens=2, completion_tokens=1
                )
                for job_id, custom_id in lines[: len(lines) - keep_open]
            ]
            connection.execute(
                shards.write_lines(claim.id, claim.fence, results, Provenance(build="b", model_hash=None))
            ).all()
            shards.count_lines(claim.id, claim.fence, results).fetch_all(connection)
            connection.execute(
                update(Shard).where(Shard.id == claim.id).values(state="done", owner=None, lease_until=None)
            )


def tickets_in(valkey: redis.Redis, queue: str) -> int:
    return int(valkey.llen(f"millrace:{queue}"))


def test_every_good_line_becomes_a_job_in_file_order(clerk: ClerkContext, valkey: redis.Redis) -> None:
    batch_id = upload(clerk, "\n".join(line(f"l{n}") for n in range(300)))
    prepare(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert (batch.status, batch.lines, batch.model) == (BatchState.IN_PROGRESS, 300, "fake")
    assert batch.expires_at == batch.created_at + timedelta(days=1)
    with clerk.database.begin() as connection:
        rows = connection.execute(select(Job.custom_id, Job.line, Job.shard_id, Job.body).order_by(Job.line)).all()
        sizes = connection.execute(select(Shard.lines).order_by(Shard.position)).scalars().all()
    assert [row.custom_id for row in rows] == [f"l{n}" for n in range(300)]
    assert [row.line for row in rows] == list(range(1, 301))
    assert sizes == [128, 128, 44]
    assert json.loads(rows[7].body)["messages"][0]["content"] == "l7"
    assert tickets_in(valkey, "batch.fake") == 3


def planned(clerk: ClerkContext) -> list[Any]:
    """Jobs in the order in which they will run; rejected ones come last."""
    with clerk.database.begin() as connection:
        return list(connection.execute(select(Job).order_by(Job.position)).all())


def test_lines_run_in_the_order_of_the_plan_and_keep_their_place_in_the_file(clerk: ClerkContext) -> None:
    systems = ["Label it.", "Translate it.", "Label it.", "Translate it."]
    content = [
        line(f"l{n}", messages=[{"role": "system", "content": system}, {"role": "user", "content": f"{n}"}])
        for n, system in enumerate(systems)
    ]
    prepare(clerk, upload(clerk, "\n".join(["", *content])))
    assert [(row.position, row.custom_id, row.line) for row in planned(clerk)] == [
        (0, "l0", 2),
        (1, "l2", 4),
        (2, "l1", 3),
        (3, "l3", 5),
    ]


def test_of_lines_that_start_alike_the_one_that_may_answer_longest_runs_first(clerk: ClerkContext) -> None:
    limits: list[dict[str, Any]] = [{"max_tokens": 5}, {"max_completion_tokens": 50}, {}, {"max_tokens": 50}]
    messages = [{"role": "system", "content": "Label it."}]
    content = [
        line(f"l{n}", messages=[*messages, {"role": "user", "content": f"{n}"}], **limit)
        for n, limit in enumerate(limits)
    ]
    prepare(clerk, upload(clerk, "\n".join(content)))
    assert [row.custom_id for row in planned(clerk)] == ["l2", "l1", "l3", "l0"]


def identical(custom_id: str, **body: Any) -> str:
    return line(custom_id, messages=[{"role": "user", "content": "the same"}], **body)


def test_identical_greedy_lines_are_neighbours_in_one_shard_and_count_once(clerk: ClerkContext) -> None:
    clerk = with_settings(clerk, shard_lines=2)
    content = [identical(f"same{n}", temperature=0) for n in range(5)]
    for n in range(4):
        content.insert(n + 1, line(f"other{n}", temperature=0))
    prepare(clerk, upload(clerk, "\n".join(content)))
    rows = planned(clerk)
    assert [row.custom_id for row in rows][:6] == [*(f"same{n}" for n in range(5)), "other0"]
    assert len({row.shard_id for row in rows[:6]}) == 1
    assert len({row.shard_id for row in rows}) == 3


def test_identical_lines_that_may_differ_in_their_answers_count_each(clerk: ClerkContext) -> None:
    clerk = with_settings(clerk, shard_lines=2)
    for settings, temperature in (({}, 1.0), ({"share_identical_lines": False}, 0)):
        clerk = with_settings(clerk, **settings)
        content = "\n".join(identical(f"same{n}", temperature=temperature) for n in range(6))
        batch_id = upload(clerk, content)
        prepare(clerk, batch_id)
        with clerk.database.begin() as connection:
            sizes = connection.execute(select(Shard.lines).where(Shard.batch_id == batch_id)).scalars().all()
        assert sizes == [2, 2, 2]


def test_a_body_is_stored_as_the_file_has_it(clerk: ClerkContext) -> None:
    body = '{"model" : "fake", "n": null, "n": 1, "messages": [{"role": "user", "content": "\\u00e9 \\/ é"}]}'
    text = f'{{"custom_id": "a", "body": {{}}, "method": "POST", "url": "{URL}", "b\\u006fdy": {body} }}'
    batch_id = upload(clerk, b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    prepare(clerk, batch_id)
    assert [row.body for row in planned(clerk)] == [body]


def test_rejected_lines_have_no_position_in_the_plan(clerk: ClerkContext) -> None:
    prepare(clerk, upload(clerk, "\n".join([line("a"), line("hot", temperature=7), line("b")])))
    rows = planned(clerk)
    assert [(row.custom_id, row.position, row.shard_id is None) for row in rows] == [
        ("a", 0, False),
        ("b", 1, False),
        ("hot", None, True),
    ]
    assert json.loads(rows[2].body)["temperature"] == 7


def test_each_model_of_a_file_has_its_own_shards(clerk: ClerkContext, tmp_path: Path) -> None:
    write_model(tmp_path, "fake", aliases="[also-fake]")
    write_model(tmp_path, "other")
    clerk = replace(clerk, live_catalog=LiveCatalog(tmp_path))
    names = ["fake", "other", "also-fake", "other"]
    batch_id = upload(clerk, "\n".join(line(f"l{n}", model=name) for n, name in enumerate(names)))
    prepare(clerk, batch_id)
    with clerk.database.begin() as connection:
        made = connection.execute(select(Shard.model, Shard.position, Shard.lines).order_by(Shard.position)).all()
    assert made == [("fake", 0, 2), ("other", 1, 2)]
    assert [row.custom_id for row in planned(clerk)] == ["l0", "l2", "l1", "l3"]
    assert batch_of(clerk, batch_id).model is None


def test_a_model_that_was_added_a_moment_ago_is_known(clerk: ClerkContext, tmp_path: Path) -> None:
    clerk = replace(clerk, live_catalog=LiveCatalog(tmp_path))
    write_model(tmp_path, "new")
    batch_id = upload(clerk, line("a", model="new"))
    prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).model == "new"


def test_preparing_twice_is_preparing_once(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, line("a"))
    prepare(clerk, batch_id)
    prepare(clerk, batch_id)
    with clerk.database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 1


def test_all_bad_lines_of_a_file_are_named_and_nothing_of_it_runs(clerk: ClerkContext) -> None:
    content = "\n".join([line("a"), "{", line("a"), "", line("b", url="/v1/embeddings"), line("c")])
    batch_id = upload(clerk, content)
    prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).status == BatchState.FAILED
    assert [(error["line"], error["code"]) for error in errors_of(clerk, batch_id)] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (5, "url_mismatch"),
    ]
    with clerk.database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 0


def test_a_line_that_cannot_be_read_fails_alone_and_is_not_retried(clerk: ClerkContext) -> None:
    bad = [
        rb'{"a": "cut \ud83d"}',
        rb'{"a": "\u0000"}',
        b'{"a": "\xff\0"}',
        b'{"a": NaN}',
        b"[" * 9999,
        b'"' + b"x" * (5 << 20) + b'"',
    ]
    bad[4] = b'{"a": ' + bad[4] + b"]" * 9999 + b"}"
    bad[5] = b'{"a": ' + bad[5] + b"}"
    rows = [line("good", model="gpt-9").encode(), line("also good").encode()]
    for number, body in enumerate(bad):
        head = f'{{"custom_id": "bad-{number}", "method": "POST", "url": "{URL}", "body": '
        rows.insert(number + 1, head.encode() + body + b"}")
    batch_id = upload(clerk, b"\n".join(rows))
    prepare(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert (batch.status, batch.lines, batch.lines_failed) == (BatchState.IN_PROGRESS, 8, 7)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        assert batches.begin_finalizing(batch_id).fetch_optional(connection) is not None
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    failed = read_file(clerk, batch.error_file_id)
    assert [one["custom_id"] for one in failed] == ["good", *(f"bad-{number}" for number in range(6))]
    codes = [(one["response"]["status_code"], one["response"]["body"]["error"]["code"]) for one in failed]
    assert codes == [(404, "model_not_found"), *[(400, "invalid_json")] * 5, (413, "line_too_long")]
    with clerk.database.begin() as connection:
        again = batch_results.retry_lines(batch_id, None, 0, 99).fetch_all(connection)
    assert [one.custom_id for one in again] == ["good"]


def test_a_file_of_another_kind_gets_one_error(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, line("a").encode("utf-16"))
    prepare(clerk, batch_id)
    (error,) = errors_of(clerk, batch_id)
    assert (error["code"], error["line"]) == ("invalid_file_format", None)
    assert "UTF-16" in error["message"]


def test_result_lines_are_whole_for_readers_that_cut_at_unicode_line_ends(clerk: ClerkContext) -> None:
    text = "one\u2028two\u2029three\x85four"
    batch_id = upload(clerk, line(text) + "\n" + line(text + "!", model=text))
    prepare(clerk, batch_id)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        assert batches.begin_finalizing(batch_id).fetch_optional(connection) is not None
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    for file_id, custom_id in ((batch.output_file_id, text), (batch.error_file_id, text + "!")):
        with clerk.files.open(file_id) as stream:
            (one,) = stream.read().decode().splitlines()
        assert json.loads(one)["custom_id"] == custom_id


def test_the_list_of_bad_lines_is_capped_with_a_note(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, "{\n" * 500)
    prepare(clerk, batch_id)
    errors = errors_of(clerk, batch_id)
    assert len(errors) == 100
    assert "500 lines are wrong" in errors[-1]["message"]


def test_an_empty_file_and_one_that_is_gone_fail_their_batches(clerk: ClerkContext) -> None:
    empty, gone = upload(clerk, " \n\n"), upload(clerk, line("a"))
    clerk.files.delete(batch_of(clerk, gone).input_file_id)
    for batch_id, code in ((empty, "empty_file"), (gone, "invalid_request")):
        prepare(clerk, batch_id)
        assert errors_of(clerk, batch_id)[0]["code"] == code


def test_too_many_lines_fail_the_batch(clerk: ClerkContext) -> None:
    clerk = with_settings(clerk, batch_lines=3)
    batch_id = upload(clerk, "\n".join(line(f"l{n}") for n in range(4)))
    prepare(clerk, batch_id)
    assert errors_of(clerk, batch_id)[0]["code"] == "too_many_tasks"


def embedding(custom_id: str, *inputs: str) -> str:
    body = {"model": "fake", "input": list(inputs)}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS_ENDPOINT, "body": body})


def test_inputs_to_embed_are_counted_over_all_lines_of_a_batch(clerk: ClerkContext) -> None:
    clerk = with_settings(clerk, batch_inputs=3)
    fits = upload(clerk, f"{embedding('a', 'x', 'y')}\n{embedding('b', 'z')}\n", EMBEDDINGS_ENDPOINT)
    prepare(clerk, fits)
    assert batch_of(clerk, fits).status == BatchState.IN_PROGRESS
    with clerk.database.begin() as connection:
        assert set(connection.execute(select(Job.endpoint)).scalars()) == {EMBEDDINGS_ENDPOINT}
    too_many = upload(clerk, f"{embedding('a', 'x', 'y')}\n{embedding('b', 'z', 'x')}\n", EMBEDDINGS_ENDPOINT)
    prepare(clerk, too_many)
    assert batch_of(clerk, too_many).status == BatchState.FAILED
    assert [error["code"] for error in errors_of(clerk, too_many)] == ["too_many_tasks"]
    assert "at most 3 inputs" in errors_of(clerk, too_many)[0]["message"]


def test_lines_the_endpoint_would_reject_fail_alone(clerk: ClerkContext) -> None:
    content = "\n".join(
        [line("good"), line("unserved", model="gpt-9"), line("hot", temperature=7), line("alias", model="also-fake")]
    )
    batch_id = upload(clerk, content)
    prepare(clerk, batch_id)
    assert (batch_of(clerk, batch_id).lines, batch_of(clerk, batch_id).lines_failed) == (4, 2)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_optional(connection)
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert [one["custom_id"] for one in read_file(clerk, batch.output_file_id)] == ["good", "alias"]
    rejected = {one["custom_id"]: one["response"] for one in read_file(clerk, batch.error_file_id)}
    assert rejected["unserved"]["status_code"] == 404
    assert rejected["unserved"]["body"]["error"]["code"] == "model_not_found"
    assert rejected["hot"]["body"]["error"]["param"] == "temperature"


def test_rejected_lines_count_once_although_the_first_commit_fails(clerk: ClerkContext) -> None:
    database = SickDatabase(clerk.database)
    clerk = replace(clerk, database=database)
    batch_id = upload(clerk, "\n".join([line("good"), line("bad", temperature="hot")]))
    num_begun = 0

    def fail_the_second() -> None:
        nonlocal num_begun
        num_begun += 1
        database.uncommitted = int(num_begun == 2)  # the first one only reads

    database.on_use = fail_the_second
    with pytest.raises(OperationalError):
        prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).status == BatchState.VALIDATING
    prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).lines_failed == 1
    assert clerk.counters.totals() == {(CounterName.LINES_REJECTED, ""): 1}


def test_a_batch_whose_lines_are_all_rejected_ends_by_itself(clerk: ClerkContext, valkey: redis.Redis) -> None:
    batch_id = upload(clerk, line("unserved", model="gpt-9"))
    prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).status == BatchState.FINALIZING
    assert tickets_in(valkey, "clerk") == 1
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert (batch.status, batch.output_file_id, batch.lines_failed) == (BatchState.COMPLETED, None, 1)


def test_results_come_in_input_order_each_in_one_file(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, "\n".join(line(f"l{n}") for n in range(700)))
    prepare(clerk, batch_id)
    answer_everything(clerk, fail=frozenset({"l3", "l500"}))
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_one(connection)
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    output = [one["custom_id"] for one in read_file(clerk, batch.output_file_id)]
    failed = [one["custom_id"] for one in read_file(clerk, batch.error_file_id)]
    assert failed == ["l3", "l500"]
    assert output == [f"l{n}" for n in range(700) if n not in (3, 500)]
    assert (batch.status, batch.lines_completed, batch.lines_failed) == (BatchState.COMPLETED, 698, 2)
    assert (batch.prompt_tokens, batch.completion_tokens) == (698 * 2, 698)
    with clerk.database.begin() as connection:
        row = connection.execute(select(File).where(File.id == batch.output_file_id)).one()
    assert (row.purpose, row.bytes) == ("batch_output", size_in(clerk.files, batch.output_file_id or ""))
    finalize(clerk, batch_id)
    assert batch_of(clerk, batch_id).output_file_id == batch.output_file_id


class _CancelledMeanwhile(DirectoryStore):
    """A store in which the batch is cancelled before its first file is written."""

    def __init__(self, clerk: ClerkContext, batch_id: str) -> None:
        super().__init__(clerk.files.directory or Path())
        self._database = clerk.database
        self._batch_id = batch_id

    @contextmanager
    def write(self, file_id: str) -> Iterator[BinaryIO]:
        with self._database.begin() as connection:
            batches.move(self._batch_id, BatchState.CANCELLING).fetch_optional(connection)
        with super().write(file_id) as stream:
            yield stream


def test_a_batch_that_is_cancelled_while_its_files_are_written_leaves_no_others_behind(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, line("a"))
    prepare(clerk, batch_id)
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_one(connection)
    overtaken = dataclasses.replace(clerk, files=_CancelledMeanwhile(clerk, batch_id))
    finalize(overtaken, batch_id)
    assert batch_of(clerk, batch_id).status == BatchState.CANCELLING
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert batch.status == BatchState.CANCELLED
    with clerk.database.begin() as connection:
        made = connection.execute(select(File.id).where(File.purpose == "batch_output")).scalars().all()
    assert made == [batch.output_file_id]
    stored = names_in(clerk.files)
    assert stored == {batch.input_file_id, batch.output_file_id}


def test_a_cancelled_batch_keeps_what_is_done_and_names_the_rest(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, "\n".join(line(f"l{n}") for n in range(10)))
    prepare(clerk, batch_id)
    answer_everything(clerk, keep_open=4)
    with clerk.database.begin() as connection:
        batches.move(batch_id, BatchState.CANCELLING).fetch_one(connection)
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert (batch.status, batch.lines_completed, batch.lines_failed) == (BatchState.CANCELLED, 6, 4)
    assert len(read_file(clerk, batch.output_file_id)) == 6
    assert {one["error"]["code"] for one in read_file(clerk, batch.error_file_id)} == {"batch_cancelled"}


def test_the_sweeper_ends_a_batch_whose_window_is_over(clerk: ClerkContext, valkey: redis.Redis) -> None:
    batch_id = upload(clerk, "\n".join(line(f"l{n}") for n in range(3)))
    prepare(clerk, batch_id)
    past = func.now() - timedelta(minutes=5)
    with clerk.database.begin() as connection:
        connection.execute(update(Batch).values(expires_at=past, dispatched_at=past))
    Sweeper(clerk).sweep()
    assert tickets_in(valkey, "clerk") == 1
    finalize(clerk, batch_id)
    batch = batch_of(clerk, batch_id)
    assert batch.status == BatchState.EXPIRED
    assert {one["error"]["code"] for one in read_file(clerk, batch.error_file_id)} == {"batch_expired"}


def test_the_sweeper_sends_lost_tickets_again(clerk: ClerkContext, valkey: redis.Redis) -> None:
    past = func.now() - timedelta(minutes=5)
    with clerk.database.begin() as connection:
        make_batch(connection)
        make_running_batch(connection, [2])
        make_job(connection)
        connection.execute(update(Batch).values(dispatched_at=past))
        connection.execute(update(Job).values(dispatched_at=past))
    sweeper = Sweeper(clerk)
    sweeper.sweep()
    assert [tickets_in(valkey, name) for name in ("clerk", "batch.fake", "chat.fake")] == [1, 1, 1]
    sweeper.sweep()
    assert [tickets_in(valkey, name) for name in ("clerk", "chat.fake")] == [1, 1], "not again so soon"


def test_the_sweeper_requeues_jobs_of_expired_leases(clerk: ClerkContext, valkey: redis.Redis) -> None:
    with clerk.database.begin() as connection:
        job_id = make_job(connection)
        jobs.claim_job(job_id, "silent", timedelta(seconds=-1)).fetch_one(connection)
    Sweeper(clerk).sweep()
    assert tickets_in(valkey, "chat.fake") == 1
    with clerk.database.begin() as connection:
        assert connection.execute(select(Job.state)).scalar_one() == JobState.QUEUED


def test_a_deleted_file_keeps_its_bytes_until_its_batch_has_ended(clerk: ClerkContext) -> None:
    batch_id = upload(clerk, line("a"))
    file_id = batch_of(clerk, batch_id).input_file_id
    with clerk.database.begin() as connection:
        connection.execute(files.hide_file(file_id, DEFAULT_TENANT)).one()
    Sweeper(clerk).sweep()
    prepare(clerk, batch_id)
    assert batch_of(clerk, batch_id).status == BatchState.IN_PROGRESS
    answer_everything(clerk)
    with clerk.database.begin() as connection:
        batches.begin_finalizing(batch_id).fetch_one(connection)
    Sweeper(clerk).sweep()
    assert size_in(clerk.files, file_id) > 0
    with clerk.database.begin() as connection:
        assert batches.move(batch_id, BatchState.COMPLETED).fetch_one(connection)
    Sweeper(clerk).sweep()
    assert not clerk.files.exists(file_id)
    with clerk.database.begin() as connection:
        assert files.find_file(file_id, DEFAULT_TENANT).fetch_optional(connection) is None
