"""Judge: what the sync endpoint would say to a line of a batch, and what the batch plan needs to know of it.

Knows wire types and served models; nothing of files, rows or shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from core.errors import ApiError, Problem
from core.models import ModelCatalog, ModelConfig
from core.wire.batch import BatchLine, read_checked_line
from core.wire.chat import ChatRequest, Message
from core.wire.validation import parse_body
from workers.plan import PlanLine, has_one_answer, hash_starts

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Refused:
    """The endpoint would answer with this problem; `model` is what was asked for."""

    problem: Problem
    model: str


class Judge:
    """Judges the lines of one file in order; remembers bodies by their hash, to find those that came before."""

    def __init__(self, catalog: ModelCatalog, *, share_identical_lines: bool) -> None:
        self._catalog = catalog
        self._share_identical_lines = share_identical_lines
        self._num_planned = 0
        self._first_with_body: dict[int, int] = {}

    def judge(self, line: BatchLine, content: bytes) -> PlanLine | Refused:
        """`content` is the line as the file has it."""
        try:
            chat = parse_body(ChatRequest, line.body)
        except ApiError as error:
            asked = line.body.get("model")
            return Refused(error.problem, asked[:256] if isinstance(asked, str) else "")
        model = self._catalog.get(chat.model)
        if model is None:
            return Refused(unknown_model(chat.model, self._catalog), chat.model)
        number = self._num_planned
        self._num_planned += 1
        return PlanLine(
            model=model.name,
            starts=hash_starts(model.name, _texts(line.body, chat.messages)),
            expected_tokens=_expected_tokens(chat, model),
            twin_of=self._first_twin(number, line.body, model, content),
        )

    def _first_twin(
        self, number: int, body: dict[str, Any], model: ModelConfig, content: bytes
    ) -> int:  # Any: see below
        """Two bodies with the same hash by accident are only neighbours: workers compare the bodies themselves."""
        if not self._share_identical_lines or not has_one_answer(body, model):
            return number
        return self._first_with_body.setdefault(hash(read_checked_line(content).body), number)


def unknown_model(name: str, catalog: ModelCatalog) -> Problem:
    """404 for a model nobody serves."""
    message = f"The model '{name}' does not exist here. Served models: {', '.join(catalog.names()) or 'none'}."
    return Problem(status=404, message=message, code="model_not_found", param="model")


def _texts(body: dict[str, Any], messages: list[Message]) -> Iterator[str]:  # Any: a checked chat body
    """The conversation in the order in which templates render it: tools stand with the system prompt, before what differs."""
    if body.get("tools"):
        yield _encode(body["tools"]).decode()
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        calls = _encode(message.tool_calls).decode() if message.tool_calls else ""
        yield f"{role}\n{message.text()}{calls}"


def _expected_tokens(chat: ChatRequest, model: ModelConfig) -> int:
    """The length an answer may have; without a limit, that of the context."""
    limit = chat.max_completion_tokens or chat.max_tokens or model.parameters.max_tokens
    return min(limit or model.context_size, model.context_size)
