"""Check the lines of a batch file as the sync endpoint would, and measure what the batch plan needs of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from core.errors import ApiError, Problem
from core.models.model_files import ModelCatalog, ModelConfig, unknown_model
from core.schemas.batch import BatchLine, read_checked_line
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS, named_model
from workers.batches.plan import PlanLine, hash_starts
from workers.generation.endpoints.base import EndpointAdapter
from workers.generation.endpoints.registry import read_adapter


@dataclass(frozen=True, slots=True)
class AcceptedLine:
    """A line that may run: its parsed body, its model, and its entry in the plan."""

    adapter: EndpointAdapter
    model: ModelConfig
    plan: PlanLine


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """The problem that the endpoint would answer; `model` is the name in the body, which may be anything."""

    problem: Problem
    model: str


class LineChecker:
    """Checks the lines of one file in order. Keeps a hash of each body, to find earlier lines with the same one.

    `num_inputs` counts the embedding inputs of all lines. Of models that share an alias, each line gets one by its `custom_id`,
    so that the same file is divided in the same way; those that are `down` get none, while another one is not.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        *,
        share_identical_lines: bool,
        endpoint: str = CHAT_ENDPOINT,
        down: Container[str] = (),
    ) -> None:
        self.num_inputs = 0
        self._endpoint = ENDPOINTS[endpoint]
        self._catalog = catalog
        self._share_identical_lines = share_identical_lines
        self._num_planned = 0
        self._down = down
        self._first_with_body: dict[tuple[str, int], int] = {}

    def begin_window(self) -> None:
        """Number planned lines from 0 again, and forget their bodies."""
        self._num_planned = 0
        self._first_with_body.clear()

    def check(self, line: BatchLine, content: bytes) -> AcceptedLine | RejectedLine:
        """Check a line; `content` is its text in the file."""
        try:
            model = named_model(line.body, self._catalog, line.custom_id, self._down)
            adapter = read_adapter(self._endpoint.path, line.body, model)
            if model is None:
                raise ApiError(unknown_model(adapter.model, self._catalog))
            self._endpoint.check(model, adapter.body)
        except ApiError as error:
            name = line.body.get("model")
            return RejectedLine(error.problem, name[:256] if isinstance(name, str) else "")
        number = self._num_planned
        self._num_planned += 1
        self.num_inputs += adapter.num_inputs
        plan = PlanLine(
            model=model.name,
            starts=hash_starts(model.name, adapter.prompt_texts()),
            expected_tokens=adapter.expected_tokens(model),
            duplicate_of=self._first_duplicate(number, adapter, model, content),
        )
        return AcceptedLine(adapter, model, plan)

    def _first_duplicate(self, number: int, adapter: EndpointAdapter, model: ModelConfig, content: bytes) -> int:
        """The first line with this body. A hash collision only makes neighbours: workers compare the bodies themselves."""
        if not self._share_identical_lines or not adapter.is_deterministic(model):
            return number
        return self._first_with_body.setdefault((model.name, hash(read_checked_line(content).body)), number)
