"""`millrace serve`: the single-machine stack in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import Cpus, Devices, ModelsDir, StateDir, given_settings

if TYPE_CHECKING:
    from cli.stack.stack import Stack
    from core.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    device: Devices = None,
    cpus: Cpus = None,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    create_key: Annotated[
        bool, typer.Option("--create-key", help="Create a first API key and print it, if --host needs one.")
    ] = False,
) -> None:
    """Run everything on this machine in the foreground: Postgres, Valkey, the engines and the API."""
    from cli.stack.stack import Stack
    from core.logs import configure_logging
    from core.process.fork_server import ForkServer
    from core.process.hangup import on_hangup
    from core.process.hardening import harden_process

    settings = given_settings(host=host, port=port, state_dir=state_dir, models_dir=models_dir)
    harden_process()
    fork_server = ForkServer("workers.launcher.fleet", "workers.consumers.main", "api")
    configure_logging(settings.log_level)
    stack = Stack(settings, devices=device or (), cpus=cpus or (), creates_key=create_key, fork_server=fork_server)
    started_at = time.monotonic()
    print(f"Starting in {settings.state_dir} …", flush=True)
    try:
        stack.start()
    except KeyboardInterrupt as interrupt:
        raise CommandFailed("Stopped before it was ready.", ExitCode.of(interrupt)) from None
    try:
        stopping = _stop_on_signals()
        on_hangup(stack.refresh_models)
        states = stack.model_states()
        served = [state.model for state in states if not state.is_stopped]
        seconds = time.monotonic() - started_at
        _print_welcome(stack, settings, served, seconds)
        _print_remarks("Not served:", {state.model: state.reason for state in states if state.is_stopped})
        _print_remarks("Served with a warning:", {state.model: state.warning for state in states if state.warning})
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


def _print_welcome(stack: Stack, settings: Settings, models: list[str], seconds: float) -> None:
    url, key, services = stack.url, stack.first_key, stack.services
    devices = ", ".join(f"{each.name} ({each.card})" if each.card else each.name for each in stack.devices)
    body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
    page = f"\n  page      {url}/" if settings.web else ""
    shown_key = f"\n  key       {key}  (shown only now; others: millrace keys create)" if key else ""
    header = f" -H 'Authorization: Bearer {key}'" if key else ""
    print(f"""
Millrace is ready after {seconds:.1f} s:  {url}/v1
{page}
  models    {", ".join(models)}
  devices   {devices}
  services  {"; ".join(services.describe())}
  logs      {services.logs}{shown_key}

Try it:

  curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops it; nothing that was accepted is lost.
""", flush=True)  # fmt: skip


def _print_remarks(title: str, remarks: Mapping[str, str | None]) -> None:
    if remarks:
        lines = "".join(f"  {model}: {remark}\n" for model, remark in remarks.items())
        print(f"{title}\n{lines}", flush=True)
