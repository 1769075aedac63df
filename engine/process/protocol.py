"""Messages on the engine's sockets, from clients to the engine and back, encoded as msgpack."""

from __future__ import annotations

import msgspec

from engine.types import AnyRequest, Delta, Embedded, Failed, Finished

# --- client → engine -------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """Connects a client: repeated until the engine's `HelloReply` arrives, and then once a second as a health check."""

    client: str


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """Starts requests in the engine that booted as `boot_id`. Another boot drops them: for the client they are lost already."""

    client: str
    boot_id: str
    requests: list[AnyRequest]


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stops requests; each still ends with a `Finished` of reason CANCELLED. Unknown ids are ignored."""

    client: str
    boot_id: str
    request_ids: list[str]


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True, tag="stream"):
    """Streams running requests from now on; the first `Delta` of each has all text so far. Unknown ids are ignored."""

    client: str
    boot_id: str
    request_ids: list[str]


ToEngine = Hello | Submit | Cancel | StreamRequest


# --- engine → client -------------------------------------------------------------------------------------------------


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What decides the speed of an engine, and what was measured for it; the speeds are None until then.

    `is_measuring`: the settings may still change. The speeds are tokens per second: of as many sequences as there are slots,
    each `depth` tokens long, and of a prompt.
    """

    kv_layout: str
    flash_attention: str
    ubatch_tokens: int
    speculation: str
    is_measuring: bool = False
    decode_speed: float | None = None
    prompt_speed: float | None = None
    depth: int | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Describes the engine and its model. `template_hash` is the SHA-256 of the chat template's text, in hex.

    `warning` is for the operator, about a model that is served all the same. `settings` are those with which the engine computes,
    where its backend measures them.
    """

    model: str
    build: str
    context_size: int
    slots: int
    num_vocab: int
    template_hash: str
    warning: str | None = None
    settings: EngineSettings | None = None


class HelloReply(msgspec.Struct, frozen=True, kw_only=True, tag="hello_reply"):
    """Replies to every `Hello`, from the thread that receives messages: the model is loaded, and the client is registered."""

    boot_id: str
    info: EngineInfo


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag="tick"):
    """Heartbeat, sent about twice a second by a thread of its own, also during a long step. A watchdog ends a hung engine.

    `num_running` are sequences in slots, or requests at the servers upstream; `num_embeddings` requests for embeddings that have
    not ended. `prompt_tokens`, of which `cached_tokens` were not computed, and `output_tokens` count from the boot.
    Of `kv_total_tokens` of memory, 0 for an engine without, sequences hold `kv_tokens`; `kv_reusable_tokens` are of ended ones.
    """

    boot_id: str
    num_steps: int
    num_running: int
    num_waiting: int
    num_embeddings: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    kv_tokens: int = 0
    kv_reusable_tokens: int = 0
    kv_total_tokens: int = 0


class Outputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs"):
    """All outputs of one step for one client, in order."""

    boot_id: str
    items: list[Delta | Finished | Embedded | Failed]


FromEngine = HelloReply | Tick | Outputs
