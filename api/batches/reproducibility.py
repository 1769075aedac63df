"""Reproducibility records: the origin of an answer, from its row alone, since model files may have changed meanwhile."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from api.schemas.batch_extensions import Reproducibility
from core.errors import ApiError
from core.ids import derive_seed
from core.models.model_files import Parameters
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.endpoints import ENDPOINTS
from core.schemas.generation import GenerationBody, ModelRequest, effective_parameters
from core.schemas.responses.chat import chat_body_of
from core.schemas.responses.request import ResponsesRequest
from db.jobs import JobRow


def reproducibility_record(row: JobRow, body: Any, answer: Any) -> Reproducibility:  # Any: JSON
    """The record of a job that was answered, from its row, body and answer."""
    request, defaults = _generation(row.endpoint, body), _defaults(row.model_parameters)
    parameters, seed = None, None
    if request is not None and defaults is not None:
        parameters, seed = effective_parameters(request, defaults), _seed(row.id, request, defaults)
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
    """The parsed body of a text generation; None for another endpoint, or a body that this version refuses."""
    try:
        request: ModelRequest = parse_body(ENDPOINTS[endpoint].body, body)
        if isinstance(request, ResponsesRequest):
            request = parse_body(ChatRequest, chat_body_of(request))
    except ApiError:
        return None
    return request if isinstance(request, GenerationBody) else None


def _defaults(recorded: str | None) -> Parameters | None:
    """The parameters of the model file at that time; None if they are not recorded, or this version cannot parse them."""
    try:
        return None if recorded is None else Parameters.model_validate_json(recorded)
    except ValidationError:
        return None


def _seed(job_id: str, request: GenerationBody, defaults: Parameters) -> int:
    chosen = defaults.seed if request.seed is None else request.seed
    return derive_seed(job_id) if chosen is None else chosen % 2**32
