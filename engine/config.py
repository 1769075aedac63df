"""How one engine is set up. The engine takes this and never looks at the environment."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Backend(StrEnum):
    """What decodes: llama.cpp, or the deterministic stand-in that ships with the code."""

    LLAMA = "llama"
    FAKE = "fake"


class KvLayout(StrEnum):
    """How llama.cpp keeps the memory of several sequences: all in one, or a stream for each."""

    AUTO = "auto"
    UNIFIED = "unified"
    SPLIT = "split"


class Switch(StrEnum):
    """On, off, or as measurement says."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: one model on one device, `slots` sequences side by side.

    `context_size` is the room of one sequence in tokens; `endpoint` is a directory that holds the engine's Unix sockets.
    `prefill_tokens` of prompts are read in one step at most, so that those who decode wait no longer than that.
    `stopwords` end every answer of this model. `step_seconds` is the fake's time per step. A step of more than
    `hang_seconds` ends the process.
    """

    model: str
    endpoint: str
    backend: Backend = Backend.LLAMA
    model_path: str = ""
    context_size: int = 2048
    slots: int = 8
    spare_slots: int | None = None
    kv_layout: KvLayout = KvLayout.AUTO
    threads: int = 0
    gpu_layers: int = 0
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    prefill_tokens: int = 512
    context_shift: bool = False
    speculation: Switch = Switch.AUTO
    jump_forward: bool = True
    chat_template: str | None = None
    stopwords: list[str] = []
    step_seconds: float = 0.0
    hang_seconds: float = 60.0
