"""What made an answer, from what its row says. The model files of today are not asked: they may have changed since."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from api.schemas.batch_extensions import Reproducibility
from core.errors import ApiError
from core.model_files import Parameters
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.endpoints import ENDPOINTS
from core.schemas.generation import GenerationBody, ModelRequest
from core.schemas.parameters import effective_parameters
from core.schemas.responses.chat import chat_body_of
from core.schemas.responses.request import ResponsesRequest
from core.seeds import derive_seed
from db.jobs import JobRow


def reproducibility_record(row: JobRow, body: Any, answer: Any) -> Reproducibility:  # Any: JSON
    """Of the row of a job that was answered, its body and its answer."""
    asked, usual = _generation(row.endpoint, body), _usual(row.model_parameters)
    parameters, seed = None, None
    if asked is not None and usual is not None:
        parameters, seed = effective_parameters(asked, usual), _seed(row.id, asked, usual)
    return Reproducibility(
        system_fingerprint=answer.get("system_fingerprint"),
        engine_build=row.engine_build,
        model_hash=row.model_hash,
        template_hash=row.template_hash,
        settings_hash=row.settings_hash,
        parameters=parameters,
        seed=seed,
    )


def _generation(endpoint: str, body: Any) -> GenerationBody | None:  # Any: JSON
    """The body by which text was generated; None where none was, and where this server would refuse the body by now."""
    try:
        asked: ModelRequest = parse_body(ENDPOINTS[endpoint].body, body)
        if isinstance(asked, ResponsesRequest):
            asked = parse_body(ChatRequest, chat_body_of(asked))
    except ApiError:
        return None
    return asked if isinstance(asked, GenerationBody) else None


def _usual(recorded: str | None) -> Parameters | None:
    """What the model's file said then; None where that is not recorded, or in words that are not known any more."""
    try:
        return None if recorded is None else Parameters.model_validate_json(recorded)
    except ValidationError:
        return None


def _seed(job_id: str, asked: GenerationBody, usual: Parameters) -> int:
    chosen = usual.seed if asked.seed is None else asked.seed
    return derive_seed(job_id) if chosen is None else chosen % 2**32
