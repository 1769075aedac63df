"""Keys of a model file for the backend transformers: a folder in the format of Hugging Face."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import BaseModel, Field, field_validator

_DEVICE: Final = re.compile(r"[a-z]{2,8}(:[0-9]{1,3})?")


class TransformersFields(BaseModel):
    """Options of the library; `parameters.model` is the folder, or `hf:ORG/REPO`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto: as they are stored."
    )
    device: str | None = Field(None, description="Device by torch's name; default: that of the worker.")
    trust_remote_code: bool = Field(False, description="Run Python code that the folder contains.")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="Implementation of attention in a model that only embeds."
    )

    @field_validator("device")
    @classmethod
    def _device_is_of_torch(cls, value: str | None) -> str | None:
        if value is not None and not _DEVICE.fullmatch(value):
            raise ValueError("must be a device by the name of torch, such as cpu or cuda:0")
        return value
