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
_PATIENCE: Final = {
    "unserved": 30.0,  # a worker may be starting
    "unloaded": 5.0,  # after the request has ended: the report of the worker comes later
}
_SERVING: Final = ("ready", "degraded")


def wait_loaded(
    client: Client, name: str, show: Callable[[Json], None], pause: Callable[[float], None] = time.sleep
) -> Json:
    """Wait until a load that was requested has ended, and return the model. Raises CommandFailed with the reason for which it
    is not loaded, or after 30 s without a worker that has it.
    """
    seconds, left = _FIRST_SECONDS, dict(_PATIENCE)
    while True:
        pause(seconds)
        model = client.get(f"/models/{quote(name)}")
        status, is_over = model["status"], not model["load_requested"]
        if is_over and status in _SERVING:
            return model
        if status in left and (is_over or status == "unserved"):
            left[status] -= seconds
        is_given_up = left[status] <= 0 if status in left else is_over and status != "loading"
        if is_given_up:
            raise CommandFailed(f"{name} is not loaded: {model['reason'] or status}")
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
