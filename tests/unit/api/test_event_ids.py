"""`Last-Event-ID` of a job's events."""

from __future__ import annotations

import pytest

from api.routes.jobs import seq_after
from core.errors import ApiError


@pytest.mark.parametrize(("last_event_id", "seq"), [(None, 0), ("0", 1), ("41", 42)])
def test_a_stream_continues_after_the_last_frame_received(last_event_id: str | None, seq: int) -> None:
    assert seq_after(last_event_id) == seq


@pytest.mark.parametrize("last_event_id", ["", "x", "-1", "1.5", "²"])
def test_an_id_that_is_no_number_is_a_400(last_event_id: str) -> None:
    with pytest.raises(ApiError) as refused:
        seq_after(last_event_id)
    assert (refused.value.problem.status, refused.value.problem.param) == (400, "Last-Event-ID")
