"""Exit codes of an engine process that aborts itself; the launcher reports each by its reason."""

from __future__ import annotations

import os
from contextlib import suppress
from enum import IntEnum
from typing import Final, NoReturn


class Exit(IntEnum):
    """Exit codes of engine processes. All but NOT_LOADED may be caused by a request in the in-flight log."""

    FAILED = 1  # the loop itself failed, not one step
    MODEL = 3  # the model cannot be loaded
    NO_FILE = 4  # a file of the model is not there
    HUNG = 86  # an iteration of the loop did not return
    MEMORY = 87  # no state is reliable after an allocation failed
    INPUT_FAILED = 88  # the thread that receives messages ended
    SERVER_ENDED = 89  # the server that the engine started, see `engine.upstream.command`


NOT_LOADED: Final = (Exit.MODEL, Exit.NO_FILE)


def abort_process(code: Exit, reason: str) -> NoReturn:
    """End the process at once, from any thread. Nothing is saved; the in-flight log names the running requests."""
    with suppress(OSError):  # a full disk under the log must not prevent the exit
        os.write(2, f"{reason}; the engine aborts\n".encode())
    os._exit(code)
