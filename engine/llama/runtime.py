"""llama.cpp in this process: started once, and quiet."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import llama_cpp as llama

from engine.stderr import complain

_ERROR_LEVEL: Final = 4


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:  # Any: a pointer
    """llama.cpp is talkative; only errors are worth a line. It never prints prompts."""
    if level == _ERROR_LEVEL:
        complain(text.decode(errors="replace"))


@cache
def start_llama() -> None:
    """Call before anything else of llama.cpp; again is free."""
    llama.llama_log_set(_log, ctypes.c_void_p(0))
    llama.llama_backend_init()
