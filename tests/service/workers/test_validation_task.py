"""A clerk runs a validation once, for any file, and stops when it is not wanted any more."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, select, text

from core import ids
from core.models.live_catalog import LiveCatalog
from core.queue.events import decode_event, outcome_event
from core.queue.names import job_channel
from core.schemas.batch_validation import BatchValidation
from db import validations
from db.tables import Validation
from tests.support.model_files import write_model
from tests.support.stack import batch_lines
from workers.context import ClerkContext, Database
from workers.validation.task import answer_validation


@pytest.fixture(autouse=True)
def _empty(clerk: ClerkContext) -> None:
    with clerk.database.begin() as connection:
        connection.execute(text("TRUNCATE validations"))


def insert(clerk: ClerkContext, content: bytes | None, endpoint: str | None = None) -> str:
    file_id, validation_id = ids.new_id(ids.FILE), ids.new_id(ids.VALIDATION)
    if content is not None:
        with clerk.files.write(file_id) as stream:
            stream.write(content)
    with clerk.database.begin() as connection:
        connection.execute(
            validations.insert_validation(id=validation_id, tenant_id="default", file_id=file_id, endpoint=endpoint)
        )
    return validation_id


def answer(clerk: ClerkContext, validation_id: str) -> tuple[str | None, str | None]:
    with clerk.database.begin() as connection:
        report, failure = validations.find_result(validation_id).fetch_one(connection)
    return report, failure


GOOD = json.dumps(batch_lines(1)[0]).encode()


def test_the_row_gets_the_report(clerk: ClerkContext) -> None:
    validation_id = insert(clerk, GOOD, "/v1/chat/completions")
    answer_validation(clerk, validation_id)
    report, failure = answer(clerk, validation_id)
    assert failure is None
    assert BatchValidation.model_validate_json(report or "").lines == 1


def test_an_outcome_is_published_after_the_row_has_it(clerk: ClerkContext, valkey: redis.Redis) -> None:
    validation_id = insert(clerk, GOOD)
    with valkey.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(clerk.settings.key_prefix + job_channel(validation_id))
        pubsub.get_message(timeout=5)  # the confirmation of the subscription
        answer_validation(clerk, validation_id)
        message = pubsub.get_message(timeout=5)
    assert message is not None
    assert decode_event(message["data"]) == outcome_event(validation_id)
    assert answer(clerk, validation_id)[0] is not None


def test_a_missing_file_is_a_failure(clerk: ClerkContext) -> None:
    validation_id = insert(clerk, None)
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == (None, "The input file does not exist any more.")


def test_the_models_that_are_served_count_whatever_is_in_their_files_now(clerk: ClerkContext, tmp_path: Path) -> None:
    file = write_model(tmp_path, "fake", aliases="[other]", stopwords="[x]", flash_attention="off")
    clerk = replace(clerk, live_catalog=LiveCatalog(tmp_path))
    file.write_text("name: 5\n")
    validation_id = insert(clerk, GOOD)
    answer_validation(clerk, validation_id)
    report, failure = answer(clerk, validation_id)
    assert report is not None, failure
    assert BatchValidation.model_validate_json(report).lines_failing == 0


def test_a_model_that_cannot_be_loaded_is_a_failure_and_not_a_crash(clerk: ClerkContext, tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"GGUF" + bytes(100))
    validation_id = insert(clerk, GOOD)
    write_model(tmp_path, "fake", backend="llama", parameters="{model: fake.gguf}")
    answer_validation(replace(clerk, live_catalog=LiveCatalog(tmp_path)), validation_id)
    report, failure = answer(clerk, validation_id)
    assert report is None
    assert failure is not None


def claimed(clerk: ClerkContext, validation_id: str, seconds: float = 60) -> bool:
    with clerk.database.begin() as connection:
        claim = validations.claim_validation(validation_id, timedelta(seconds=seconds))
        return claim.fetch_optional(connection) is not None


def test_a_validation_of_another_clerk_is_left_alone_until_its_lease_expires(clerk: ClerkContext) -> None:
    validation_id = insert(clerk, GOOD)
    assert claimed(clerk, validation_id, 60)
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == (None, None)
    with clerk.database.begin() as connection:
        assert not connection.execute(validations.unclaimed(timedelta(0), 9)).all(), "the sweeper leaves it alone too"
        connection.execute(validations.renew_claim(validation_id, timedelta(0)))
    with clerk.database.begin() as connection:
        assert len(connection.execute(validations.unclaimed(timedelta(0), 9)).all()) == 1
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id)[0] is not None


class Beats(Database):
    """Counts transactions, and those that are open."""

    num_open = num_begun = 0

    @contextmanager
    def begin(self, **points: Any) -> Iterator[Connection]:
        with super().begin(**points) as connection:
            self.num_open, self.num_begun = self.num_open + 1, self.num_begun + 1
            try:
                yield connection
            finally:
                self.num_open -= 1


def test_no_transaction_is_open_while_the_report_runs_and_the_lease_is_renewed(
    clerk: ClerkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = Beats(clerk.database.engine)
    open_meanwhile = []
    communicate = subprocess.Popen.communicate

    def watch(*arguments: Any, **options: Any) -> Any:
        open_meanwhile.append(beats.num_open)
        return communicate(*arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", watch)
    quick = clerk.settings.model_copy(update={"heartbeat_seconds": 0.01})
    validation_id = insert(clerk, GOOD)
    answer_validation(replace(clerk, database=beats, settings=quick), validation_id)
    assert answer(clerk, validation_id)[0] is not None
    assert set(open_meanwhile) == {0}
    assert beats.num_begun > 2, "claim, result and renewals"


def test_the_report_is_stopped_when_the_validation_is_deleted(
    clerk: ClerkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = []
    communicate = subprocess.Popen.communicate
    validation_id = insert(clerk, GOOD)

    def leave(process: subprocess.Popen[str], **options: Any) -> Any:
        processes.append(process)
        with clerk.database.begin() as connection:
            connection.execute(validations.delete_validation(validation_id))
        return communicate(process, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", leave)
    quick = clerk.settings.model_copy(update={"heartbeat_seconds": 0.001})
    answer_validation(replace(clerk, settings=quick), validation_id)
    assert processes[0].returncode == -signal.SIGKILL
    with clerk.database.begin() as connection:
        assert validations.find_result(validation_id).fetch_optional(connection) is None


def test_a_validation_runs_once_and_a_deleted_one_not_at_all(clerk: ClerkContext) -> None:
    validation_id = insert(clerk, None)
    answer_validation(clerk, validation_id)
    first = answer(clerk, validation_id)
    with clerk.database.begin() as connection:
        file_id = connection.execute(select(Validation.file_id)).scalar_one()
    with clerk.files.write(file_id) as stream:
        stream.write(GOOD)
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == first
    with clerk.database.begin() as connection:
        connection.execute(validations.delete_validation(validation_id))
    answer_validation(clerk, validation_id)


def test_old_validations_are_deleted(clerk: ClerkContext) -> None:
    insert(clerk, GOOD)
    with clerk.database.begin() as connection:
        connection.execute(validations.delete_old_validations(timedelta(hours=1)))
        assert len(connection.execute(select(Validation.id)).all()) == 1
    with clerk.database.begin() as connection:
        connection.execute(validations.delete_old_validations(timedelta(0)))
        assert connection.execute(select(Validation.id)).all() == []
