"""Keys of a model file for the backend openai: a server that speaks OpenAI's API, or a command that starts one."""

from __future__ import annotations

import re
import shlex
from ipaddress import ip_address
from typing import Annotated, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from core.metadata_addresses import is_metadata_address
from core.models.fields.upstream_headers import check_header

MAX_CONCURRENCY: Final = 4096
UpstreamEndpoint = Literal["chat", "completions", "embeddings"]

_MAX_URL: Final = 2048
_MAX_URLS: Final = 64
_API_ROOT: Final = "/v1"
_ENDPOINT: Final = re.compile(r"/(chat/completions|completions|embeddings|responses|models)$")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AUTHORIZATION: Final = "authorization"


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
    model: str | None = Field(
        None, min_length=1, max_length=256, description="The server's name of the model; default: `name`."
    )
    api_key_env: str | None = Field(None, description="Variable of the environment with the server's key.")
    headers: dict[str, str] = Field(
        {}, description="Headers of every request to the server; `${NAME}` is a variable of the environment."
    )
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

    @field_validator("base_url", "endpoints", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("base_url")
    @classmethod
    def _urls_are_complete(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        """Return the addresses of the API: without a slash at the end, and with /v1 where there is no path."""
        complete = tuple(map(_complete, urls))
        if len(complete) > _MAX_URLS:
            raise ValueError(f"has more than {_MAX_URLS} addresses")
        if len(set(complete)) < len(complete):
            raise ValueError("names an address twice")
        return complete

    @field_validator("api_key_env")
    @classmethod
    def _key_is_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE.fullmatch(name):  # the message must not repeat a key
            raise ValueError("must be the name of an environment variable, such as OPENAI_API_KEY, not the key itself")
        return name

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            check_header(name, value)
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("names a header twice")
        return headers

    @field_validator("endpoints")
    @classmethod
    def _endpoints_differ(cls, endpoints: tuple[UpstreamEndpoint, ...]) -> tuple[UpstreamEndpoint, ...]:
        if len(set(endpoints)) < len(endpoints):
            raise ValueError("names an endpoint twice")
        return endpoints

    @field_validator("command", mode="before")
    @classmethod
    def _command_is_split(cls, value: object) -> object:
        if not isinstance(value, str):
            return tuple(value) if isinstance(value, list) else value
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {str(error).lower()}; write a list") from None

    @field_validator("command")
    @classmethod
    def _command_can_run(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in word for word in command):
            raise ValueError("has a null character")
        if command and not command[0]:
            raise ValueError("must begin with the program")
        return command

    @model_validator(mode="after")
    def _upstream_agrees(self) -> Self:
        if self.api_key_env is not None and any(name.lower() == _AUTHORIZATION for name in self.headers):
            raise ValueError("headers: Authorization is set by api_key_env; remove one of the two")
        if self.base_url and self.command:
            raise ValueError("command: starts a server, and base_url names one that runs; remove one of the two keys")
        if not self.command and self.port is not None:
            raise ValueError("port: is the port of a server that `command` starts; with base_url, write it there")
        if self.command and self.port is None and not any("{port}" in word for word in self.command):
            raise ValueError("command: needs {port} where the server's port belongs, or the key port with the number")
        return self


def _complete(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and a host, such as http://127.0.0.1:8080/v1")
    if "@" in parts.netloc:
        raise ValueError("must have no user name and no password; name the variable of the key in api_key_env")
    if "?" in url or "#" in url:
        raise ValueError("must end with its path: no ? and no #")
    if _is_reserved(parts.hostname):
        raise ValueError(f"{parts.hostname} is no address of a server")
    path = parts.path.rstrip("/")
    if (found := _ENDPOINT.search(path)) is not None:
        raise ValueError(f"must end before {found[0]}: the endpoint is added to it")
    return f"{parts.scheme}://{parts.netloc}{path or _API_ROOT}"


def _split(url: str) -> SplitResult:
    """Return the parts of an address of printable ASCII with a valid port."""
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("must be an address of printable characters without spaces, such as http://127.0.0.1:8080/v1")
    try:
        parts = urlsplit(url)
        is_valid = parts.port != 0
    except ValueError:  # a port that is no number, or brackets without an IPv6 address
        is_valid = False
    if not is_valid:
        raise ValueError("must have a valid host and a port from 1 to 65535, such as http://127.0.0.1:8080/v1")
    return parts


def _is_reserved(host: str) -> bool:
    """Is it an address that no server listens on, or that of a cloud's metadata, which holds keys?"""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return is_metadata_address(address) or address.is_unspecified
