"""`millrace models`: the models of the server, and the files of the models folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple
from urllib.parse import quote

import typer

from cli.commands.model_control import load, pin, reload, unload, unpin
from cli.commands.models_add import add
from cli.errors import CommandFailed, ExitCode
from cli.models.listing import file_problems, is_model, local_model, print_models
from cli.options import ApiKey, AsJson, BaseUrl, ModelsDir, connected, given_settings
from cli.output import plural, print_fields, print_json, remark
from core.memory_sizes import format_bytes
from core.states import FINAL_BATCH_STATES

if TYPE_CHECKING:
    from pathlib import Path

    from cli.client import Json
    from cli.models.removal import Removal

models = typer.Typer(help="Models: add, list, show, load, pin and remove them.", invoke_without_command=True)
for verb in (add, load, unload, reload, pin, unpin):
    models.command()(verb)

ModelName = Annotated[str, typer.Argument(help="A name from `millrace models list`.", metavar="NAME")]

_SHOWN: Final = 5
_NEWEST: Final = 500  # batches, among which those of the model are looked for


class _Waiting(NamedTuple):
    """The ids of open batches of a model, and the number of those whose models are not known or several."""

    batches: list[str]
    num_others: int


@models.callback()
def _models(
    context: typer.Context, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    if context.invoked_subcommand is None:
        list_models(base_url, api_key, None, as_json=as_json)
        return
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = {"as_json": "--json"}.get(name, f"--{name.replace('_', '-')}")
            raise CommandFailed(f"Write {option} behind `{context.invoked_subcommand}`.", ExitCode.USAGE)


@models.command("list")
def list_models(
    base_url: BaseUrl = None, api_key: ApiKey = "none", models_dir: ModelsDir = None, as_json: AsJson = False
) -> None:
    """List the models of the server; without one on this machine, those of the models folder."""
    try:
        with connected(base_url, api_key) as client:
            found, report = client.get("/models")["data"], client.readiness() or {}
        problems = file_problems(report)
    except CommandFailed as error:
        if base_url or error.code is not ExitCode.UNREACHABLE:
            raise
        found, problems = _of_folder(models_dir)
        report = {}
        remark("No server runs on this machine; these are the models of its models folder.")
    if as_json:
        print_json(found)
    else:
        print_models([model for model in found if is_model(model)], report)
    for problem in problems:
        remark(problem)


@models.command()
def show(
    name: ModelName,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show a model of the server, by name or alias; without one on this machine, a model of the models folder."""
    try:
        with connected(base_url, api_key) as client:
            model = client.get(f"/models/{quote(name)}")
    except CommandFailed as error:
        if base_url or error.code is not ExitCode.UNREACHABLE:
            raise
        model = _model_of_folder(name, models_dir)
        remark("No server runs on this machine; this is the model of its models folder.")
    if as_json:
        print_json(model)
    else:
        print_fields({key: value for key, value in model.items() if key not in ("object", "created", "owned_by")})


@models.command()
def remove(
    name: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove a model from the models folder: its YAML file, and its weights if they are there and no other model uses them.

    A running server takes it up by itself. Asks first, and names work that waits for the model.
    """
    from cli.models.removal import plan_removal
    from cli.models.removal import remove as remove_files

    folder = given_settings(models_dir=models_dir).models_dir
    removal = plan_removal(folder, name)
    waiting = _waiting_batches(name, base_url, api_key)
    for line in _described(removal, waiting):
        remark(line)
    if not yes:
        _ask(name)
    left = remove_files(removal, folder)
    if as_json:
        print_json(
            {
                "model": name,
                "removed": [str(path) for path in removal.files],
                "kept": [{"file": str(path), "reason": reason} for path, reason in removal.kept.items()],
                "freed_bytes": removal.freed_bytes,
                "waiting_batches": None if waiting is None else waiting.batches,
                "served_instead": left,
            }
        )
    else:
        print(f"Removed {name}; {format_bytes(removal.freed_bytes)} freed.")
    if left:
        remark(f"Files that stay in {folder} are served now, as {', '.join(left)}.")


def _of_folder(models_dir: Path | None) -> tuple[list[Json], list[str]]:
    """Return the models of the folder, and the problems of its files."""
    from core.models.models_folder import FolderReader

    settings = given_settings(models_dir=models_dir)
    contents = FolderReader(settings.models_dir).read()
    models = sorted(contents.models.values(), key=lambda model: model.name)
    return [local_model(model, settings) for model in models], list(contents.problems.values())


def _model_of_folder(name: str, models_dir: Path | None) -> Json:
    from core.models.model_files import ModelCatalog, unknown_model
    from core.models.models_folder import FolderReader

    settings = given_settings(models_dir=models_dir)
    contents = FolderReader(settings.models_dir).read()
    catalog = ModelCatalog(list(contents.models.values()))
    model = catalog.get(name)
    if model is None:
        raise CommandFailed(unknown_model(name, catalog).message)
    file = next(file for file, each in contents.models.items() if each is model)
    shown = {**local_model(model, settings), "file": str(settings.models_dir / file)}
    if model.upstream_model is None:
        return {**shown, "weights": model.weights}
    servers = list(model.base_url) or [model.command[0]]
    return {**shown, "servers": servers, "server_model": model.upstream_model}


def _waiting_batches(name: str, base_url: str | None, api_key: str) -> _Waiting | None:
    """Return the open batches that need a model; None where no server answers."""
    try:
        with connected(base_url, api_key) as client:
            batches = client.listed("/batches", limit=_NEWEST)
    except CommandFailed as error:
        if base_url and error.code is ExitCode.UNREACHABLE:
            raise
        return None
    is_open = [batch for batch in batches if batch["status"] not in FINAL_BATCH_STATES]
    of_model = [batch["id"] for batch in is_open if batch["model"] == name]
    return _Waiting(of_model, sum(batch["model"] is None for batch in is_open))


def _described(removal: Removal, waiting: _Waiting | None) -> list[str]:
    """Return what a removal does, one sentence each."""
    lines = [f"removes {path}" for path in removal.files]
    lines += [f"keeps {path}: {reason}" for path, reason in removal.kept.items()]
    if waiting is None:
        return [*lines, "No server answers, so it is not known whether work waits for the model."]
    if waiting.batches:
        number = plural(len(waiting.batches), "open batch needs", "open batches need")
        shown = ", ".join(waiting.batches[:_SHOWN]) + (" …" if len(waiting.batches) > _SHOWN else "")
        advice = (
            "Lines that have not run fail with model_not_found after missing_model_seconds (600), unless it is back."
        )
        lines.append(f"{number} {removal.model}: {shown}. {advice}")
    if waiting.num_others:
        number = plural(waiting.num_others, "open batch", "open batches")
        lines.append(f"{number} of several models, or not checked yet, may need it, too.")
    return lines


def _ask(name: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandFailed(f"To remove {name} without a question, add --yes.", ExitCode.USAGE)
    if not typer.confirm(f"Remove {name}?", err=True):
        raise CommandFailed("Nothing was removed.", ExitCode.USAGE)
