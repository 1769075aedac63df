"""`millrace models load`, `unload`, `reload`, `pin` and `unpin`: which models are in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote

import typer

from cli.options import ApiKey, AsJson, BaseUrl, ModelsDir, connected, given_settings
from cli.output import console, print_json, printable, remark
from core.states import ModelAction

if TYPE_CHECKING:
    from cli.client import Json

_CONTRADICTIONS: Final = {
    "load": "a pinned model is loaded at the start",
    "keep_alive_seconds": "a pinned model never leaves memory",
}

Name = Annotated[str, typer.Argument(help="A name from `millrace models list`.", metavar="NAME")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is done, or the server gives the reason why not.")]


def load(
    name: Name, wait: Wait = False, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Load a model on the server before a request needs it. Other models may leave memory for it.

    A model that failed to load is tried again at once. Needs a key with the scope admin.
    """
    _change(ModelAction.LOAD, name, base_url, api_key, wait=wait, as_json=as_json)


def unload(
    name: Name, wait: Wait = False, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Unload a model when its running requests have ended. It is loaded again when a request needs it.

    Needs a key with the scope admin.
    """
    _change(ModelAction.UNLOAD, name, base_url, api_key, wait=wait, as_json=as_json)


def reload(
    name: Name, wait: Wait = False, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Unload a model when its running requests have ended, then load it. New requests wait meanwhile.

    Needs a key with the scope admin.
    """
    _change(ModelAction.RELOAD, name, base_url, api_key, wait=wait, as_json=as_json)


def pin(name: Name, models_dir: ModelsDir = None, as_json: AsJson = False) -> None:
    """Keep a model in memory for good: sets `pinned: true` in its file on this machine; comments stay.

    Also ends `load: lazy` and `keep_alive_seconds`, which a pinned model may not have. A running server takes it up by
    itself. A GGUF file without a YAML file gets one.
    """
    _pin(name, models_dir, is_pinned=True, as_json=as_json)


def unpin(name: Name, models_dir: ModelsDir = None, as_json: AsJson = False) -> None:
    """Let a model leave memory when others need the room: sets `pinned: false` in its file on this machine."""
    _pin(name, models_dir, is_pinned=False, as_json=as_json)


def _change(action: ModelAction, name: str, base_url: str | None, api_key: str, *, wait: bool, as_json: bool) -> None:
    from cli.models.waiting import wait_loaded, wait_unloaded

    with connected(base_url, api_key) as client:
        model = client.post(f"/models/{quote(name)}/{action}")
        if wait:
            follow = wait_unloaded if action is ModelAction.UNLOAD else wait_loaded
            with _progress(action, name, as_json=as_json) as show:
                model = follow(client, name, show)
    if as_json:
        print_json(model)
    elif wait or model["status"] != "ready":
        print(printable(f"{model['id']}: {model['status']}"))
    else:
        print(printable(f"{model['id']}: {action} requested"))


@contextmanager
def _progress(action: ModelAction, name: str, *, as_json: bool) -> Iterator[Callable[[Json], None]]:
    """Show the seconds on a terminal; elsewhere, each new status."""
    screen, began = console(as_json=as_json), time.monotonic()
    if screen.is_terminal:
        with screen.status("") as line:
            yield lambda model: line.update(
                f"{action}ing {printable(name)}: {model['status']}, {time.monotonic() - began:.0f} s"
            )
        return
    last = ""

    def show(model: Json) -> None:
        nonlocal last
        if model["status"] != last:
            last = model["status"]
            remark(f"{name}: {last}")

    yield show


def _pin(name: str, models_dir: Path | None, *, is_pinned: bool, as_json: bool) -> None:
    from cli.models.pinning import set_pinned

    done = set_pinned(given_settings(models_dir=models_dir).models_dir, name, is_pinned=is_pinned)
    if as_json:
        print_json({"model": name, "pinned": is_pinned, "file": str(done.file), "changed": done.changed})
        return
    print(printable(f"{name} is {'' if is_pinned else 'not '}pinned, in {done.file}."))
    for key, value in done.changed.items():
        if key in _CONTRADICTIONS:
            remark(f"{key} is now {value}, since {_CONTRADICTIONS[key]}.")
