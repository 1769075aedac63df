"""`millrace models add`: get a model, and write its model file, which a running server takes up by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from cli.address import local_url
from cli.errors import CommandFailed, ExitCode
from cli.options import AsJson, Force, ModelsDir, connected, given_settings
from cli.output import console, print_json, print_pairs, remark

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from cli.models.facts import ModelFacts
    from cli.models.plan import Plan, Room, Slots
    from cli.models.weights import FoundWeights, WeightsFinder
    from core.settings import Settings

_LISTED_SECONDS: Final = 3.0  # a server looks at the folder every second


def add(
    what: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a folder, https://…/NAME.gguf, or hf:ORG/REPO, with :QUANT or /FILE.gguf, and @REVISION.",
            metavar="WHAT",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model in requests.", show_default="from WHAT")] = None,
    slots: Annotated[
        str | None, typer.Option(help="Answers side by side, or auto.", show_default="by memory", metavar="N|auto")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=64, max=1 << 20, help="Tokens of a prompt and its answer.", show_default="by memory"),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy a file of this machine into the models folder, instead of naming it.")
    ] = False,
    force: Force = False,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Get a model and write its model file. A running server takes it up by itself.

    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE work as for Hugging Face's own tools.
    """
    from cli.models.model_file import check_free, check_name, file_stem, usable_name, write_model_file
    from cli.models.plan import choose_plan
    from cli.models.sources.download import disk_errors
    from cli.models.sources.source import parse_source, shown_source
    from cli.models.weights import WeightsFinder

    wanted_slots = _parse_slots(slots)
    if name is not None:
        check_name(name)
    source = parse_source(what)
    settings = given_settings(models_dir=models_dir)
    room = _room(settings)
    finder = WeightsFinder(settings.models_dir, _Bar(console(as_json=True)), remark, room.budget)
    with disk_errors(settings.models_dir):
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        found = finder.find(source)
        chosen_name = name or usable_name(found.name)
        check_free(settings.models_dir, chosen_name, force=force)
        paths = _fetched(finder, found)
        facts = finder.facts(found, paths)
        plan = choose_plan(facts, room, slots=wanted_slots, context=context)
        weights = finder.place(found, paths, file_stem(chosen_name), copy=copy)
        file = write_model_file(settings.models_dir, chosen_name, weights, facts, plan, shown_source(what), force=force)
    if not plan.fits:
        remark(
            f"{chosen_name} needs more memory than its models may have on {room.device}: {plan.describe_need()}. "
            "It was added, and cannot be loaded here unless `device_memory` allows more."
        )
    _wait_listed(chosen_name)
    if as_json:
        print_json(_summary(chosen_name, file, weights, plan))
    else:
        _print_choices(chosen_name, file, facts, plan, local_url(settings))


def _print_choices(name: str, file: Path, facts: ModelFacts, plan: Plan, url: str) -> None:
    print_pairs(
        [
            ("added", name),
            ("model", facts.describe()),
            ("memory", plan.describe_need()),
            ("slots", "" if plan.slots is None else _slots_line(plan)),
            ("file", str(file)),
            ("try", _line_to_try(name, url, generates=facts.generates, has_template=facts.has_template)),
        ]
    )


def _wait_listed(name: str) -> None:
    """Wait until the server, if one runs, has looked at the models folder, so that the line to try works at once."""
    until = time.monotonic() + _LISTED_SECONDS
    try:
        with connected(None, "none") as client:
            while all(each["id"] != name for each in client.get("/models")["data"]) and time.monotonic() < until:
                time.sleep(0.2)
    except CommandFailed:  # no server, or one that needs a key
        return


def _fetched(finder: WeightsFinder, found: FoundWeights) -> list[Path]:
    try:
        return finder.staged(found)
    except KeyboardInterrupt:
        remark("Interrupted; the same command continues with the bytes that are here.")
        raise


def _parse_slots(text: str | None) -> Slots | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if text.isdecimal() and 1 <= int(text) <= 256:
        return int(text)
    raise CommandFailed(f"--slots: {text!r} is neither auto nor a whole number from 1 to 256.", ExitCode.USAGE)


def _room(settings: Settings) -> Room:
    """The memory of the device on which a server of these settings would load the model."""
    from cli.models.plan import Room
    from core.devices.budget import device_budget
    from core.devices.inventory import read_inventory
    from core.devices.names import DeviceKind
    from core.devices.selection import choose_devices

    device = choose_devices((), read_inventory())[0]
    return Room(
        device=device.name,
        budget=device_budget(settings, device),
        free_bytes=device.free_bytes or 0,
        on_gpu=device.kind is not DeviceKind.CPU,
        usual_slots=settings.slots,
    )


def _slots_line(plan: Plan) -> str:
    number = "as many as are fastest, each" if plan.slots == "auto" else plan.slots
    return f"{number} of {plan.context_size:,} tokens"


def _summary(name: str, file: Path, weights: str, plan: Plan) -> dict[str, object]:
    need = plan.need
    return {
        "name": name,
        "file": str(file),
        "weights": weights,
        "context_size": plan.context_size,
        "slots": plan.slots,
        "device": plan.room.device,
        "memory_bytes": need.total,
        "weights_bytes": need.weights_bytes,
        "kv_bytes": need.kv_bytes,
        "compute_bytes": need.compute_bytes,
        "budget_bytes": plan.room.budget,
        "fits": plan.fits,
    }


def _line_to_try(name: str, url: str, *, generates: bool, has_template: bool) -> str:
    if generates and has_template:
        return f'millrace chat --model {name} "Who are you?"'
    kind: Literal["completions", "embeddings"] = "completions" if generates else "embeddings"
    body = '"prompt": "The mill by the river", "max_tokens": 32' if generates else '"input": "The mill by the river"'
    return f"curl {url}/{kind} -H 'content-type: application/json' -d '{{\"model\": \"{name}\", {body}}}'"


class _Bar:
    """A progress bar on stderr; without a terminal, a line when a download begins."""

    def __init__(self, terminal: Console) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self._terminal = terminal

    def start(self, name: str, total: int | None, done: int) -> None:
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        if not self._terminal.is_terminal:
            from core.memory_sizes import format_bytes

            rest = f" of {format_bytes(total)}" if total is not None else ""
            remark(f"Downloading {name}: {format_bytes(done)}{rest} are here.")
        self._progress.start()
        self._progress.add_task(name, total=total, completed=done)

    def advance(self, num_bytes: int) -> None:
        for task in self._progress.task_ids:
            self._progress.advance(task, num_bytes)

    def stop(self) -> None:
        self._progress.stop()
