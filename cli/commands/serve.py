"""`millrace serve`: the single-machine stack in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import Device, ModelsDir, StateDir, given_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    device: Device = None,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
) -> None:
    """Run everything on this machine in the foreground: Postgres, Valkey, the engines and the API."""
    from cli.stack.stack import Stack
    from core.process.hardening import harden_process

    settings = given_settings(host=host, port=port, state_dir=state_dir, models_dir=models_dir)
    harden_process()
    stack = Stack(settings, device=device)
    started_at = time.monotonic()
    print(f"Starting in {settings.state_dir} …", flush=True)
    try:
        stack.start()
    except KeyboardInterrupt as interrupt:
        raise CommandFailed("Stopped before it was ready.", ExitCode.of(interrupt)) from None
    try:
        stopping = _stop_on_signals()
        served = [model for model in stack.models if model not in stack.unloaded]
        _print_welcome(stack.url, served, stack.services.describe(), stack.services.logs, time.monotonic() - started_at)
        if stack.unloaded:
            print(f"Not loaded, see {stack.services.logs}/worker.log: {', '.join(stack.unloaded)}\n", flush=True)
        stack.run(stopping)
        print("\nFinishing running requests, then stopping …", flush=True)
    finally:
        stack.stop()


def _stop_on_signals() -> threading.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C ends the process and all its children."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping


def _print_welcome(url: str, models: list[str], services: list[str], logs: Path, seconds: float) -> None:
    body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
    print(f"""
Millrace is ready after {seconds:.1f} s:  {url}/v1

  models    {", ".join(models)}
  services  {"; ".join(services)}
  logs      {logs}

Try it:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops it; nothing that was accepted is lost.
""", flush=True)  # fmt: skip
