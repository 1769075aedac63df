"""Keys of a model file for the backend openai: a server that speaks OpenAI's API, or a command that starts one."""

from __future__ import annotations

import shlex
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

MAX_CONCURRENCY: Final = 4096
UpstreamEndpoint = Literal["chat", "completions", "embeddings"]


def _number_or_auto(value: object) -> object:
    """Give one message where a union would give one for each of its members."""
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_CONCURRENCY):
        return value
    raise ValueError(f"must be a whole number from 1 to {MAX_CONCURRENCY}, or auto")


class UpstreamFields(BaseModel):
    """One or several `base_url`s of servers with the same model, or a `command` and the `port` that its server listens on.

    `{port}` in the command is that port; without `port`, a free one is chosen.
    """

    base_url: tuple[str, ...] = Field(
        (), description="Address of an OpenAI-compatible server, such as http://127.0.0.1:8080/v1; or a list of them."
    )
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Variable of the environment with the server's key."
    )
    headers: dict[str, str] = Field({}, description="Headers of every request to the server.")
    timeout_seconds: float = Field(600, gt=0, le=86400, description="Seconds that an answer of the server may take.")
    max_concurrency: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        "auto", description="Requests that the server gets at a time; auto finds the number."
    )
    endpoints: tuple[UpstreamEndpoint, ...] = Field(
        (), description="Endpoints of the server: chat, completions, embeddings. Default: chat and completions."
    )
    command: tuple[str, ...] = Field(
        (), description="Command that starts the server, a list or a line; `{port}` in it is replaced."
    )
    port: int | None = Field(None, ge=1, le=65535, description="Port of the server that `command` starts.")
    health_path: str = Field("/health", pattern=r"^/[!-~]*$", description="Path that answers 200 once it is ready.")
    ready_seconds: float = Field(600, gt=0, le=86400, description="Seconds that it may take to become ready.")

    @field_validator("base_url", mode="before")
    @classmethod
    def _urls_are_listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("endpoints", mode="before")
    @classmethod
    def _endpoints_are_listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("command", mode="before")
    @classmethod
    def _command_is_split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(shlex.split(value))
        return tuple(value) if isinstance(value, list) else value
