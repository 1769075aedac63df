"""Judge: what the sync endpoint would say to a line of a batch, and what the batch plan needs to know of it.

Knows wire types and served models; nothing of files, rows or shards.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ApiError, Problem
from core.model_files import ModelCatalog, ModelConfig
from core.schemas.batch import BatchLine, read_checked_line
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS
from workers.batches.plan import PlanLine, hash_starts
from workers.generation.endpoints.base import EndpointAdapter
from workers.generation.endpoints.registry import read_adapter


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """The endpoint would answer with this problem; `model` is what was asked for."""

    problem: Problem
    model: str


class LineChecker:
    """Judges the lines of one file in order; remembers bodies by their hash, to find those that came before.

    `num_inputs` counts what all lines want embedded.
    """

    def __init__(self, catalog: ModelCatalog, *, share_identical_lines: bool, endpoint: str = CHAT_ENDPOINT) -> None:
        self.num_inputs = 0
        self._endpoint = ENDPOINTS[endpoint]
        self._catalog = catalog
        self._share_identical_lines = share_identical_lines
        self._num_planned = 0
        self._first_with_body: dict[int, int] = {}

    def judge(self, line: BatchLine, content: bytes) -> PlanLine | RejectedLine:
        """`content` is the line as the file has it."""
        try:
            exchange = read_adapter(self._endpoint.path, line.body)
            model = self._find(exchange.model)
            self._endpoint.check_model(model)
        except ApiError as error:
            asked = line.body.get("model")
            return RejectedLine(error.problem, asked[:256] if isinstance(asked, str) else "")
        number = self._num_planned
        self._num_planned += 1
        self.num_inputs += exchange.num_inputs
        return PlanLine(
            model=model.name,
            starts=hash_starts(model.name, exchange.prompt_texts()),
            expected_tokens=exchange.expected_tokens(model),
            twin_of=self._first_twin(number, exchange, model, content),
        )

    def _find(self, name: str) -> ModelConfig:
        if (model := self._catalog.get(name)) is None:
            raise ApiError(unknown_model(name, self._catalog))
        return model

    def _first_twin(self, number: int, exchange: EndpointAdapter, model: ModelConfig, content: bytes) -> int:
        """Two bodies with the same hash by accident are only neighbours: workers compare the bodies themselves."""
        if not self._share_identical_lines or not exchange.is_deterministic(model):
            return number
        return self._first_with_body.setdefault(hash(read_checked_line(content).body), number)


def unknown_model(name: str, catalog: ModelCatalog) -> Problem:
    """404 for a model nobody serves."""
    message = f"The model '{name}' does not exist here. Served models: {', '.join(catalog.names()) or 'none'}."
    return Problem(status=404, message=message, code="model_not_found", param="model")
