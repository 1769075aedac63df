"""Schemas of `GET /v1/activity`: devices and models now. Times are unix seconds, durations seconds."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel


class DeviceEngine(ResponseModel):
    """A model in the memory of a device; `state` is loading or ready."""

    model: str
    state: str
    memory_bytes: int | None


class DeviceActivity(ResponseModel):
    """A device as its launcher reported it at `seen_at`; `is_silent` if that is too long ago.

    A number is null where the system does not report it. Models may have `budget_bytes` together, null without a limit, and those
    in memory need `engine_bytes`, also those that the key does not show.
    """

    host: str
    device: str
    card: str | None
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: int | None
    engine_bytes: int
    engines: list[DeviceEngine]
    seen_at: int
    is_silent: bool


class TokensPerSecond(ResponseModel):
    """The tokens of all engines of a model in the last seconds; those of prompts include the ones from the prefix cache."""

    prompt: float
    output: float


class Tokens(ResponseModel):
    """The tokens since the engines of a model started; `cached` ones are part of `prompt`."""

    prompt: int
    cached: int
    output: int


class KvCache(ResponseModel):
    """Tokens in the KV cache: `used` by running requests, `reusable` of ended ones, and the room for all."""

    used_tokens: int
    reusable_tokens: int
    total_tokens: int
    usage: float


class Waiting(ResponseModel):
    """Work of all tenants that waits, and since when; null if nothing does."""

    waiting: int
    oldest_seconds: float | None


class Queues(ResponseModel):
    """Chats that no worker has taken; lines without a result in batches that may run, with the longest wait of a batch."""

    chats: Waiting
    lines: Waiting


class LastCrash(ResponseModel):
    """The last crash of an engine, kept for a day."""

    at: int
    host: str
    device: str
    reason: str


class QuarantinedRequests(ResponseModel):
    """Requests that engines crashed on: `suspect`, or `refused` for `quarantine_hours`."""

    suspect: int
    refused: int


class ModelActivity(ResponseModel):
    """A served model. `status` to `backend` are those of `GET /v1/models`.

    `slots` and `busy_slots` are null for a server upstream, whose requests are `running_requests`, for a model that only embeds,
    and while nothing reports them. `waiting_requests` are in an engine without a slot. What needs an engine is null without one;
    `prefix_cache_hit_rate` is the part of the prompt tokens that were not computed, since the engines started.
    """

    model: str
    status: str
    reason: str | None
    warning: str | None
    pinned: bool
    load_requested: bool
    backend: str
    devices: list[str]
    memory_bytes: int | None
    slots: int | None
    busy_slots: int | None
    running_requests: int
    waiting_requests: int
    tokens_per_second: TokensPerSecond
    tokens: Tokens
    kv_cache: KvCache | None
    prefix_cache_hit_rate: float | None
    queue: Queues
    running_batches: int
    waiting_batches: int
    last_crash: LastCrash | None
    quarantined_requests: QuarantinedRequests


class Activity(ResponseModel):
    """The devices of all workers by host and name, and the models that the key may use by name, as read at `read_at`."""

    object: Literal["activity"] = "activity"
    read_at: int
    devices: list[DeviceActivity]
    models: list[ModelActivity]
