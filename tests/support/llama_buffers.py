"""The buffers that llama.cpp allocates for a model and a context, from its log."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import llama_cpp as llama

from engine.backends.llama import gguf as engine_log

_BUFFER = re.compile(r"(\w+) buffer size = +([\d.]+) MiB")


@dataclass
class Buffers:
    """MiB by the kind of the buffer: `model`, `KV`, `RS` (recurrent states), `compute`, `output`."""

    mebibytes: dict[str, float] = field(default_factory=dict)

    def total(self, *kinds: str) -> float:
        return sum(self.mebibytes.get(kind, 0.0) for kind in kinds)


@contextmanager
def logged_buffers() -> Iterator[Buffers]:
    """Collect the sizes of the buffers that are allocated in the block."""
    engine_log.start_llama()
    buffers = Buffers()

    @llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def collect(_level: int, text: bytes, _data: Any) -> None:
        if found := _BUFFER.search(text.decode(errors="replace")):
            buffers.mebibytes[found[1]] = buffers.mebibytes.get(found[1], 0.0) + float(found[2])

    llama.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield buffers
    finally:
        llama.llama_log_set(engine_log._log, ctypes.c_void_p(0))
