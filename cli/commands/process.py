"""`millrace api`, `worker` and `clerk`: one process of a fleet, which finds its database and queue in the settings."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from cli.options import Cpus, Devices, given_settings
from cli.output import remark


def api() -> None:
    """Run an api process. DATABASE_URL and REDIS_URL must be set."""
    _exec("api", "-m", "api")


def worker(
    device: Devices = None,
    cpus: Cpus = None,
    models: Annotated[
        str | None, typer.Option(help="Names of models, separated by commas.", show_default="all")
    ] = None,
) -> None:
    """Run a worker: the engines of all GPUs, or of the devices that are named. DATABASE_URL and REDIS_URL must be set."""
    options = [("--device", each) for each in device or ()] + [("--cpus", each) for each in cpus or ()]
    options += [("--models", models)] if models else []
    _exec("worker", "-m", "workers", *[part for option in options for part in option])


def clerk() -> None:
    """Run a clerk, which prepares and finalizes batches without an engine. DATABASE_URL and REDIS_URL must be set."""
    _exec("clerk", "-m", "workers.consumers.main", "clerk")


def _exec(name: str, *arguments: str) -> NoReturn:
    """Replace this process by the service."""
    from core.errors import ConfigError, Unreachable
    from core.models.models_folder import load_models
    from core.process.hardening import harden_process
    from core.queue.reachable import check_queue

    settings = given_settings()
    if not settings.database_url or not settings.redis_url:
        raise ConfigError(f"millrace {name} needs DATABASE_URL and REDIS_URL. On one machine, run: millrace serve")
    load_models(settings.models_dir)  # raises; the process itself serves the models of the other files
    try:
        check_queue(settings.redis_url)
    except Unreachable as error:  # an outage: work that is in the database continues without it
        remark(f"millrace {name}: {error} It is tried again until it answers.")
    harden_process()
    os.execv(sys.executable, [sys.executable, "-P", *arguments])  # noqa: S606 - our own program
