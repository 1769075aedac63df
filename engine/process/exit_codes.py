"""How an engine's process ends when it ends itself: codes that whoever started it can tell apart."""

from __future__ import annotations

import os
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn


class Exit(IntEnum):
    """Exit codes of `engine.process.server`. All but MODEL are evidence against what the ledger has."""

    FAILED = 1  # the loop itself failed, not a step of it
    MODEL = 3  # the model cannot be loaded
    HUNG = 86  # a turn of the loop did not return
    MEMORY = 87
    INTAKE_DIED = 88  # the thread that takes messages has ended


def abort_process(code: Exit, words: str) -> NoReturn:
    """End the process from any thread, now: what it was at is in the ledger, and nothing else of it can be relied on."""
    with suppress(OSError):  # a full disk under the log must not keep it alive
        os.write(2, f"{words}; the engine gives up\n".encode())
    os._exit(code)
