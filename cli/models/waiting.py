"""Waits until a server has loaded or unloaded a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from cli.client import Client, Json
from cli.errors import CommandFailed

_FIRST_SECONDS: Final = 1.2  # the api reads the states of models once per second
_POLL_SECONDS: Final = 0.5
_UNSERVED_SECONDS: Final = 30.0  # a worker may be starting
_SERVING: Final = ("ready", "degraded")


def wait_loaded(
    client: Client, name: str, show: Callable[[Json], None], pause: Callable[[float], None] = time.sleep
) -> Json:
    """Wait until a load that was requested has ended, and return the model. Raises CommandFailed with the reason for which it
    is not loaded, or after 30 s without a worker that has it.
    """
    seconds, unserved = _FIRST_SECONDS, 0.0
    while True:
        pause(seconds)
        model = client.get(f"/models/{quote(name)}")
        if not model["load_requested"]:
            if model["status"] in _SERVING:
                return model
            raise CommandFailed(f"{name} is not loaded: {model['reason'] or model['status']}")
        unserved = unserved + seconds if model["status"] == "unserved" else 0.0
        if unserved > _UNSERVED_SECONDS:
            raise CommandFailed(f"{name} is not loaded: {model['reason']}")
        seconds = _POLL_SECONDS
        show(model)


def wait_unloaded(
    client: Client, name: str, show: Callable[[Json], None], pause: Callable[[float], None] = time.sleep
) -> Json:
    """Wait until no worker serves a model, and return it: running requests end first."""
    pause(_FIRST_SECONDS)
    while (model := client.get(f"/models/{quote(name)}"))["status"] in _SERVING:
        show(model)
        pause(_POLL_SECONDS)
    return model
