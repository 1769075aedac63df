"""`millrace health`: do the processes of this host work? It asks them, not the database: the probe of containers and scripts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.address import host_to_call
from cli.errors import CommandFailed
from cli.options import StateDir, given_settings
from core.process.signs_of_life import Phase, Role, Sign, read_signs

_SECONDS: Final = 3.0


def health(
    role: Annotated[Role | None, typer.Argument(help="The processes to ask.", show_default="all that run")] = None,
    device: Annotated[str | None, typer.Option(help="Device of the worker.", show_default="all")] = None,
    state_dir: StateDir = None,
) -> None:
    """Ask the processes on this host that use the state directory whether they work, without the database.

    Exit code 0: all that were asked do. 1: one does not, or none runs.
    """
    asked = _asked(state_dir or _usual_state_dir(), role, device)
    for sign in asked:
        if problem := problem_of(sign, time.monotonic()):
            raise CommandFailed(f"{_title(sign)} {problem}.")
    titles = [_title(sign) for sign in asked]
    print(f"{titles[0]} works." if len(titles) == 1 else f"These processes work: {', '.join(map(_lower, titles))}.")


def _usual_state_dir() -> Path:
    """Return that of the settings, which load only where the variable does not name it: a probe runs often."""
    variable = os.environ.get("MILLRACE_STATE_DIR")
    return Path(variable) if variable else given_settings().state_dir


def _asked(state_dir: Path, role: Role | None, device: str | None) -> list[Sign]:
    """Return the signs of the processes; one that was stopped as it should be counts only where no other of its role runs."""
    signs = [sign for sign in read_signs(state_dir, role) if device in (None, sign.name)]
    running = {sign.role for sign in signs if sign.is_running}
    asked = [sign for sign in signs if sign.is_running or sign.phase is not Phase.STOPPING]
    if role is not None and role not in running:
        asked = asked or signs
    if not asked:
        what = f"No {role}" if role else "Nothing of Millrace"
        of_device = f" of {device}" if device else ""
        raise CommandFailed(f"{what}{of_device} runs on this host with the state directory {state_dir}.")
    return asked


def problem_of(sign: Sign, now: float) -> str:
    """Describe what is wrong with a process, in words that follow its title; empty if nothing is.

    `now` is the monotonic clock's.
    """
    silent_seconds = now - sign.at
    if not sign.is_running:
        return "was stopped" if sign.phase is Phase.STOPPING else "has ended without a shutdown"
    if silent_seconds > sign.within:
        return f"is stuck or frozen: its last sign of life is {silent_seconds:.0f} s old"
    if sign.phase is not Phase.READY:
        return f"is {sign.phase}"
    if sign.problem:
        return f"does not work: {sign.problem}"
    return _unanswered(sign.url) if sign.url else ""


def _unanswered(url: str) -> str:
    """Call an api, and describe the failure; empty if it answers."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(host_to_call(parts.hostname or ""), parts.port, timeout=_SECONDS)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"does not answer at {url}: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"answers with the status {status} at {url}/healthz"


def _title(sign: Sign) -> str:
    device = f" of {sign.name}" if sign.name else ""
    return f"The {sign.role}{device} (process {sign.pid})"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
