"""A clerk answers a question about a file once, whatever the file is, and whoever has left."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text

from core import ids
from core.wire.batch_validation import BatchValidation
from db import batches, validations
from db.tables import Validation
from tests.stack import batch_lines
from workers.context import ClerkContext
from workers.validation import answer_validation


@pytest.fixture(autouse=True)
def _empty(clerk: ClerkContext) -> None:
    with clerk.database.begin() as connection:
        connection.execute(text("TRUNCATE validations"))


def asked(clerk: ClerkContext, content: bytes | None, endpoint: str | None = None) -> str:
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
        report, failure = connection.execute(validations.find_answer(validation_id)).one()
    return report, failure


GOOD = json.dumps(batch_lines(1)[0]).encode()


def test_the_row_gets_the_report(clerk: ClerkContext) -> None:
    validation_id = asked(clerk, GOOD, "/v1/chat/completions")
    answer_validation(clerk, validation_id)
    report, failure = answer(clerk, validation_id)
    assert failure is None
    assert BatchValidation.model_validate_json(report or "").lines == 1


def test_a_file_that_is_gone_is_said(clerk: ClerkContext) -> None:
    validation_id = asked(clerk, None)
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == (None, "The input file does not exist any more.")


def test_models_that_cannot_be_loaded_are_a_failure_and_not_a_crash(clerk: ClerkContext, tmp_path: Path) -> None:
    (clerk.settings.models_dir / "broken.yaml").write_text("name: 5\n")
    try:
        validation_id = asked(clerk, GOOD)
        answer_validation(clerk, validation_id)
    finally:
        (clerk.settings.models_dir / "broken.yaml").unlink()
    report, failure = answer(clerk, validation_id)
    assert report is None
    assert failure is not None


def test_what_another_clerk_is_at_is_left_to_it(clerk: ClerkContext) -> None:
    validation_id = asked(clerk, GOOD)
    with clerk.database.begin() as connection:
        assert connection.execute(batches.try_lock(validation_id)).scalar_one()
        answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == (None, None)


def test_an_answer_is_not_given_twice_and_a_question_taken_back_not_at_all(clerk: ClerkContext) -> None:
    validation_id = asked(clerk, None)
    answer_validation(clerk, validation_id)
    first = answer(clerk, validation_id)
    with clerk.database.begin() as connection:
        file_id = connection.execute(select(Validation.file_id)).scalar_one()
    with clerk.files.write(file_id) as stream:
        stream.write(GOOD)
    answer_validation(clerk, validation_id)
    assert answer(clerk, validation_id) == first
    with clerk.database.begin() as connection:
        connection.execute(validations.forget_validation(validation_id))
    answer_validation(clerk, validation_id)


def test_questions_nobody_waits_for_any_more_go(clerk: ClerkContext) -> None:
    asked(clerk, GOOD)
    with clerk.database.begin() as connection:
        connection.execute(validations.forget_old_validations(timedelta(hours=1)))
        assert len(connection.execute(select(Validation.id)).all()) == 1
    with clerk.database.begin() as connection:
        connection.execute(validations.forget_old_validations(timedelta(0)))
        assert connection.execute(select(Validation.id)).all() == []
