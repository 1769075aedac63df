"""Origins: W3C's headers are read strictly, and a row brings back what was written."""

from __future__ import annotations

import pytest

from core.telemetry.origin import Origin

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_trace_of_the_client_is_kept_in_the_row() -> None:
    origin = Origin.of_headers("req_1", PARENT, "vendor=1,other=2")
    assert Origin.from_json(origin.to_json()) == origin
    assert (origin.trace_id, origin.span_id, origin.is_sampled) == (TRACE, SPAN, True)
    assert origin.log_fields() == {"request_id": "req_1", "trace_id": TRACE}
    assert origin.unsampled().traceparent == f"00-{TRACE}-{SPAN}-00"


def test_a_later_version_is_continued_in_ours() -> None:
    assert Origin.of_headers("r", f"42-{TRACE}-{SPAN}-01-more", None).traceparent == PARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_an_invalid_traceparent_is_ignored_with_its_state(header: str) -> None:
    assert Origin.of_headers("r", header, "vendor=1") == Origin(request_id="r")


@pytest.mark.parametrize("state", ["x=" + "1" * 600, "name=ü", "a=1\nb: 2"])
def test_an_invalid_tracestate_is_ignored_alone(state: str) -> None:
    assert Origin.of_headers("r", PARENT, state) == Origin(request_id="r", traceparent=PARENT)


def test_rows_without_an_origin_have_an_empty_one() -> None:
    assert Origin.from_json(None) == Origin()
    assert Origin().log_fields() == {}
    assert Origin().unsampled() == Origin()
