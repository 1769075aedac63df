"""The body of a request for embeddings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from core.schemas.base import Input, TokenIds, as_inputs
from core.schemas.generation import ModelRequest

MAX_INPUTS: Final = 2048
MAX_DIMENSIONS: Final = 1 << 16

_Text = Annotated[str, StringConstraints(min_length=1)]
Inputs = (
    _Text
    | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
)


class EmbeddingBody(ModelRequest):
    """`POST /v1/embeddings`. `dimensions` keeps that many of a vector's first numbers, at length 1 again."""

    not_done: ClassVar[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
        "stream": (False,),
        "truncate_prompt_tokens": (),
        "messages": (),
    }

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=MAX_DIMENSIONS)

    @property
    def inputs(self) -> list[Input]:
        """Each input by itself."""
        return as_inputs(self.input)
