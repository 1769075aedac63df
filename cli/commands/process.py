"""`millrace api`, `worker` and `clerk`: one process of a fleet, which finds its database and queue in the settings."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from cli.options import Device, given_settings


def api() -> None:
    """Run an api process (DATABASE_URL and REDIS_URL must be set)."""
    _exec("api", "-m", "api")


def worker(
    device: Device = None,
    models: Annotated[str | None, typer.Option(help="Names, separated by commas; default: all.")] = None,
) -> None:
    """Run a worker of one device (DATABASE_URL and REDIS_URL must be set)."""
    options = (("--device", device), ("--models", models))
    _exec("worker", "-m", "workers", *[part for name, value in options if value for part in (name, value)])


def clerk() -> None:
    """Run a clerk: it prepares and finalizes batches and needs no engine (DATABASE_URL and REDIS_URL must be set)."""
    _exec("clerk", "-m", "workers.consumers.main", "clerk")


def _exec(name: str, *arguments: str) -> NoReturn:
    """Replace this process by the service."""
    from core.errors import ConfigError
    from core.process.hardening import harden_process

    settings = given_settings()
    if not settings.database_url or not settings.redis_url:
        raise ConfigError(f"millrace {name} needs DATABASE_URL and REDIS_URL. On one machine, run: millrace serve")
    harden_process()
    os.execv(sys.executable, [sys.executable, "-P", *arguments])  # noqa: S606 - our own program
