"""Adapter of `/v1/embeddings`: one engine request for all inputs, a vector for each."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from typing import Any

import msgspec

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

_encode = msgspec.json.Encoder().encode


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
        """OpenAI's list of embeddings, in the order of the inputs."""
        assert isinstance(result, Embedded), "embeddings are vectors"
        write = _base64 if self.body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(result.vectors)
        ]
        tokens = result.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _encode({"object": "list", "data": data, "model": header.model, "usage": usage}).decode()


def _base64(vector: bytes) -> str:
    """Little-endian float32, the format of the engine and of the official client."""
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
