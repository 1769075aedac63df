"""The model file of a new model: its name, its YAML with comments on the choices, and its place in the models folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import yaml

from cli.errors import CommandFailed, ExitCode
from cli.models.facts import ModelFacts
from cli.models.plan import Plan
from core.errors import ConfigError
from core.field_errors import plain
from core.models.model_files import load_model
from core.models.models_folder import FolderReader

_MAX_NAME: Final = 96
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*", re.ASCII)


def usable_name(text: str) -> str:
    """A name for a model from the name of a file or repository, without characters that names have not."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._").lower()
    return name[:_MAX_NAME] or "model"


def check_name(name: str) -> None:
    """Raise CommandFailed for a name that no model may have."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise CommandFailed(
            f"--name: {plain(name)!r} is no name of a model: use letters, digits and . _ : - (and / after an organisation), "
            f"at most {_MAX_NAME}.",
            ExitCode.USAGE,
        )


def file_stem(name: str) -> str:
    """The name of a model's file and folder, without an ending."""
    return name.replace("/", "--").replace(":", "-")


def check_free(folder: Path, name: str, *, force: bool) -> None:
    """Raise CommandFailed if a model or a file of this name is there; with `force`, only if another file has the name."""
    path = folder / f"{file_stem(name)}.yaml"
    for file, model in FolderReader(folder).read().models.items():
        is_bare = not file.endswith((".yaml", ".yml"))  # gives way to a YAML file
        if is_bare or (force and file == path.name):
            continue
        if name in (model.name, *model.aliases):
            advice = "Choose another with --name" + (", or replace it with --force." if file == path.name else ".")
            raise CommandFailed(f"A model is called {name} already, in {folder / file}. {advice}", ExitCode.USAGE)
    if path.exists() and not force:
        raise CommandFailed(
            f"{path} exists. Choose another name with --name, or replace it with --force.", ExitCode.USAGE
        )


def write_model_file(
    folder: Path, name: str, weights: str, facts: ModelFacts, plan: Plan, what: str, *, force: bool
) -> Path:
    """Write the YAML file as a whole or not at all, and return its path."""
    path = folder / f"{file_stem(name)}.yaml"
    draft = folder / f".{path.name}.{os.getpid()}.tmp"  # hidden, so that no server reads it
    try:
        draft.write_text(model_text(name, weights, facts, plan, what), encoding="utf-8")
        load_model(draft, need_weights=True)
        if force:
            draft.replace(path)
        else:
            _move_new(draft, path)
    except ConfigError as error:
        raise CommandFailed(f"The model file would not be valid: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return path


def model_text(name: str, weights: str, facts: ModelFacts, plan: Plan, what: str) -> str:
    """The YAML of a model, with a comment on each choice."""
    lines = [
        f"# {facts.describe()}.",
        f"# Written by `millrace models add {plain(what)}`; docs/models.md explains every key.",
        _line("name", name),
        "parameters:",
        f"  {_line('model', weights)}",
    ]
    if isinstance(facts.weights, Path):
        lines.insert(3, "backend: transformers")
    if facts.generates and not facts.has_template:
        kind = "folder" if isinstance(facts.weights, Path) else "GGUF"
        lines.append(
            f"# The {kind} has no chat template, as a base model: use /v1/completions, or set `chat_template`."
        )
    if facts.is_embedding:
        lines.append("embeddings: true")
    lines += [f"# {plan.context_reason}", f"context_size: {plan.context_size}"]
    if plan.slots is not None:
        lines += [f"# {plan.slots_reason}", f"slots: {plan.slots}"]
    return "\n".join([*lines, f"# Memory: {plan.describe_need()}.", ""])


def _line(key: str, value: str) -> str:
    return yaml.safe_dump({key: value}, allow_unicode=True, width=1000).strip()


def _move_new(draft: Path, path: Path) -> None:
    """Give the draft its name, unless a file has it."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise CommandFailed(f"{path} was written meanwhile. Choose another name with --name.") from None
    except OSError:  # a file system without links
        draft.rename(path)
