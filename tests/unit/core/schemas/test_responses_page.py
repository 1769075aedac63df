"""`docs/responses.md` lists every field that a client may send."""

from __future__ import annotations

import re

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from core.schemas.generation import OPERATOR_ONLY
from core.schemas.responses.request import ResponsesRequest
from core.settings import ROOT

PAGE = (ROOT / "docs" / "responses.md").read_text()


def section(heading: str) -> str:
    (found,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def first_cells(heading: str) -> set[str]:
    """Return the names in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", section(heading), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


IGNORED = set(re.findall(r"`([a-z_]+)`", section("Accepted and ignored")))


def test_the_table_of_what_is_accepted_has_every_field_of_the_body_and_no_other() -> None:
    assert first_cells("Accepted") == set(ResponsesRequest.model_fields)


def test_the_table_of_what_is_refused_has_every_refused_name_and_no_other() -> None:
    assert first_cells("Refused") == {*ResponsesRequest.unsupported, *OPERATOR_ONLY}


@pytest.mark.parametrize("name", sorted(ResponseCreateParamsBase.__annotations__))
def test_every_field_of_the_official_client_is_on_the_page(name: str) -> None:
    assert name in first_cells("Accepted") | IGNORED | first_cells("Refused")


def test_what_is_ignored_is_in_no_table() -> None:
    assert not IGNORED & {*ResponsesRequest.model_fields, *ResponsesRequest.unsupported, *OPERATOR_ONLY}
