"""`docs/parameters.md` says what becomes of every field a client may send."""

from __future__ import annotations

import re

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from core.settings import ROOT
from core.wire import chat
from core.wire.chat import ChatRequest

ACCEPTED, IGNORED, REFUSED = (
    set(re.findall(r"`([a-z_]+)`", part))
    for part in re.split(r"^## .*$", (ROOT / "docs" / "parameters.md").read_text(), flags=re.MULTILINE)[1:]
)


def first_cells(heading: str) -> set[str]:
    """The names in the first column of a table."""
    page = (ROOT / "docs" / "parameters.md").read_text()
    (table,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_table_of_what_is_accepted_has_every_field_of_the_body_and_no_other() -> None:
    assert first_cells("Accepted") == set(ChatRequest.model_fields)


def test_the_table_of_what_is_refused_has_every_refused_name_and_no_other() -> None:
    assert first_cells("Refused") == {*chat.NOT_DONE, *chat.DANGEROUS}


@pytest.mark.parametrize("name", sorted(CompletionCreateParamsBase.__annotations__))
def test_every_field_of_the_official_client_is_on_the_page(name: str) -> None:
    assert name in ACCEPTED | IGNORED | REFUSED


def test_what_is_ignored_is_in_no_table() -> None:
    assert not (IGNORED - {"chat_template_kwargs"}) & {*ChatRequest.model_fields, *chat.NOT_DONE, *chat.DANGEROUS}
