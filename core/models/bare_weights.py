"""Bare weights: each GGUF file of the models folder that no YAML file names is a model under its own file name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from core.field_errors import plain
from core.models.model_files import ModelConfig, Parameters

_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)
_MAX_PARTS: Final = 1000
_MAGIC: Final = b"GGUF"


class BareModel(NamedTuple):
    """A GGUF file as a model, or the reason why it is none."""

    file: str
    model: ModelConfig | None
    problem: str = ""


def bare_models(files: Iterable[Path], named: Collection[Path]) -> list[BareModel]:
    """Return a model for each file, in this order; a split file is one. `named`: resolved paths that YAML files name."""
    models: list[BareModel] = []
    served, present, firsts = dict.fromkeys(named, ""), list(files), set[Path]()
    for path in sorted(present, key=lambda path: (path.is_symlink(), path.name)):
        parts = weights_files(path)
        if parts[0] in firsts or (parts[0] != path and parts[0] in present):
            continue
        firsts.add(parts[0])
        owner = served.setdefault(path.resolve(), path.name)
        if owner == path.name:
            models.append(_bare_model(path, parts))
        elif owner:
            reason = (
                f"is the same file as {plain(owner)}; to give a model a second name, write a YAML file with aliases"
            )
            models.append(BareModel(path.name, None, f"{plain(path.name)} {reason}."))
    return models


def weights_files(path: Path) -> list[Path]:
    """Return all parts of a split GGUF file, of which `path` is one, or the path alone.

    The names of parts are those of llama.cpp: `NAME-00001-of-00003.gguf`.
    """
    found = _PART.fullmatch(path.stem)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= _MAX_PARTS:
        return [path]
    numbers = range(1, int(found["count"]) + 1)
    return [path.with_name(f"{found['name']}-{number:05}-of-{found['count']}{path.suffix}") for number in numbers]


def _bare_model(path: Path, parts: list[Path]) -> BareModel:
    shown = plain(path.name)
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        return BareModel(path.name, None, f"{shown} is a part of a model; its part {plain(missing.name)} is missing.")
    found = _PART.fullmatch(path.stem) if len(parts) > 1 else None
    name = path.stem if found is None else found["name"]
    try:
        model = ModelConfig(name=name, parameters=Parameters(model=str(path.resolve())))
    except ValidationError:
        reason = "cannot be served under its name: a model's name has letters, digits and . _ : - only, and at most 96"
        return BareModel(path.name, None, f"{shown} {reason}. Rename it, or write a YAML file for it.")
    defects = (_defect(part) for part in parts)
    defect = next((defect for defect in defects if defect), "")
    return BareModel(path.name, model if not defect else None, defect)


def _defect(path: Path) -> str:
    """Return the reason why this file cannot be loaded, if its beginning shows one."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        return f"{plain(path.name)} cannot be read: {(error.strerror or str(error)).lower()}."
    if magic == _MAGIC:
        return ""
    return f"{plain(path.name)} does not begin with the letters GGUF: it is still being written, or it is no GGUF file."
