"""`docs/parameters.md` lists every field that a client may send."""

from __future__ import annotations

import re

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.generation import OPERATOR_ONLY, ModelRequest
from core.settings import ROOT

ACCEPTED, IGNORED, REFUSED = (
    set(re.findall(r"`([a-z_]+)`", part))
    for part in re.split(r"^## .*$", (ROOT / "docs" / "parameters.md").read_text(), flags=re.MULTILINE)[1:4]
)


def first_cells(heading: str) -> set[str]:
    """Return the names in the first column of a table."""
    page = (ROOT / "docs" / "parameters.md").read_text()
    (table,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_table_of_what_is_accepted_has_every_field_of_the_body_and_no_other() -> None:
    assert first_cells("Accepted") == set(ChatRequest.model_fields)


def test_the_table_of_what_is_refused_has_every_refused_name_and_no_other() -> None:
    assert first_cells("Refused") == {*ChatRequest.unsupported, *OPERATOR_ONLY}


@pytest.mark.parametrize("name", sorted(CompletionCreateParamsBase.__annotations__))
def test_every_field_of_the_official_client_is_on_the_page(name: str) -> None:
    assert name in ACCEPTED | IGNORED | REFUSED


def test_what_is_ignored_is_in_no_table() -> None:
    assert not (IGNORED - {"chat_template_kwargs"}) & {
        *ChatRequest.model_fields,
        *ChatRequest.unsupported,
        *OPERATOR_ONLY,
    }


OTHERS = [
    ("Completions", CompletionBody, completion_create_params.CompletionCreateParamsBase),
    ("Embeddings", EmbeddingBody, embedding_create_params.EmbeddingCreateParams),
]


def section(heading: str) -> str:
    page = (ROOT / "docs" / "parameters.md").read_text()
    (text,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.mark.parametrize(("heading", "body", "official"), OTHERS)
def test_every_other_endpoint_has_a_table_of_what_it_takes_and_refuses(
    heading: str, body: type[ModelRequest], official: type
) -> None:
    own = set(body.model_fields) - set(ChatRequest.model_fields)
    same = set(re.findall(r"`(\w+)`", section(heading).split("As for a chat:")[1].split("\n\n")[0]))
    assert same == set(body.model_fields) & set(ChatRequest.model_fields) - first_cells(heading)
    refused = set(body.unsupported) - set(ChatRequest.unsupported)
    assert own | refused <= first_cells(heading) <= set(body.model_fields) | set(body.unsupported)
    said = set(re.findall(r"`(\w+)`", section(heading)))
    assert set(official.__annotations__) <= said, "every field of the official client is there"
