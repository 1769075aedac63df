"""Adapter of `/v1/embeddings`: one engine request for all inputs, a vector for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.models.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.completion import EmbeddingBody
from engine.types import Embedded, EmbedRequest
from workers.generation.endpoints.base import (
    EndpointAdapter,
    EngineRequest,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
)
from workers.generation.endpoints.completions import to_prompt
from workers.generation.endpoints.embedding_response import embedding_list


@dataclass(frozen=True)
class EmbeddingAdapter(EndpointAdapter):
    """A list of inputs. Vectors have no stream, and lines stay in the order of the file, since they share no prefix."""

    body: EmbeddingBody

    @classmethod
    def parse(cls, body: Any) -> EmbeddingAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(EmbeddingBody, body))

    @property
    def num_inputs(self) -> int:
        return len(self.body.inputs)

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        del model  # its defaults are about sampling
        return [
            EmbedRequest(
                id=origin.job_id,
                inputs=[to_prompt(given) for given in self.body.inputs],
                dimensions=self.body.dimensions,
                priority=origin.priority,
                tenant=origin.tenant,
            )
        ]

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Embedded), "embeddings are vectors"
        return embedding_list(header, result, is_base64=self.body.encoding_format == "base64")
