"""Messages on the engine's socket: what clients send, and what the engine sends to each of them."""

from __future__ import annotations

import msgspec

from engine.types import Delta, Embedded, EmbedRequest, Failed, Finished, Request

# --- client → engine -------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """A client is here; repeated until the engine's `HelloReply` arrives, and now and then after that, to hear another one."""

    client: str


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """Work for the engine that booted as `boot_id`; another boot drops it, since its client already counts it lost."""

    client: str
    boot_id: str
    requests: list[Request | EmbedRequest]


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stop these; each still ends with a `Finished` whose reason is CANCELLED. Unknown ids are ignored."""

    client: str
    boot_id: str
    request_ids: list[str]


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True, tag="stream"):
    """These go on as streams, whose first `Delta` has all there is by now. Unknown ids are ignored."""

    client: str
    boot_id: str
    request_ids: list[str]


ToEngine = Hello | Submit | Cancel | StreamRequest


# --- engine → client -------------------------------------------------------------------------------------------------


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is running: sent once to each client. `template_hash` is the SHA-256 of the chat template's text, in hex."""

    model: str
    build: str
    context_size: int
    slots: int
    num_vocab: int
    template_hash: str


class HelloReply(msgspec.Struct, frozen=True, kw_only=True, tag="hello_reply"):
    """The engine knows this client; the model is loaded. The answer to every `Hello`."""

    boot_id: str
    info: EngineInfo


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag="tick"):
    """The loop turned: sent by the loop's own thread about twice a second, busy or idle. A hung decode sends none."""

    boot_id: str
    num_steps: int
    num_running: int
    num_waiting: int


class Outputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs"):
    """Everything one step has for one client, in order."""

    boot_id: str
    items: list[Delta | Finished | Embedded | Failed]


FromEngine = HelloReply | Tick | Outputs
