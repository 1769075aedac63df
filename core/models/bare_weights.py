"""Bare weights: each GGUF file of the models folder that no YAML file names is a model under its own file name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from core.errors import MillraceError
from core.field_errors import plain
from core.models.folder_files import FolderFile
from core.models.gguf.gguf_header import GgufError, GgufHeader, GgufKind, read_gguf, split_paths, split_stem
from core.models.model_files import ModelConfig, Parameters

_LEAST_CONTEXT: Final = 64
_RANK: Final = 4  # a pooling type of llama.cpp: scores, not embeddings
_NO_MODEL: Final[Mapping[GgufKind, str]] = {
    GgufKind.ADAPTER: "an adapter, not a model: name it under `lora` in the YAML file of its model",
    GgufKind.PROJECTOR: "a projector of images or sound, not a model, and cannot be served",
    GgufKind.IMPORTANCE_MATRIX: "an importance matrix, not a model",
    GgufKind.VOCABULARY: "a vocabulary without weights, not a model",
}


class BareModel(NamedTuple):
    """A GGUF file as a model, or the reason why it is none."""

    file: str
    model: ModelConfig | None
    problem: str = ""


class BareWeights:
    """The bare weights of a folder, look after look; headers are read only after a change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looks: dict[Path, _Look] = {}

    def look(self, files: Sequence[FolderFile], named: Collection[Path]) -> list[BareModel]:
        """Return a model for each file; a split file is one. `named`: the resolved paths that YAML files name."""
        present = {self._folder / file.name: file for file in files}
        last, self._looks = self._looks, {}
        owners = dict.fromkeys(named, "")
        models: list[BareModel] = []
        for path in sorted(present, key=lambda path: (path.is_symlink(), path.name)):
            parts = split_paths(path)
            if parts[0] in self._looks or (parts[0] != path and parts[0] in present):
                continue
            owner = owners.setdefault(path.resolve(), path.name)
            if owner == path.name:
                look = _look(path, [present.get(part) for part in parts], last.get(parts[0]))
                self._looks[parts[0]] = look
                models.append(look.model)
            elif owner:
                problem = f"{plain(path.name)} is the same file as {plain(owner)}"
                advice = "to give a model a second name, write a YAML file with aliases"
                models.append(BareModel(path.name, None, f"{problem}; {advice}."))
        return models


class _Look(NamedTuple):
    """The parts of a model as they were seen, None for a missing one; and the model."""

    parts: list[FolderFile | None]
    is_settled: bool
    model: BareModel


def _look(path: Path, parts: list[FolderFile | None], last: _Look | None) -> _Look:
    is_settled = all(part is None or part.is_settled for part in parts)
    if last is not None and last.is_settled and last.parts == parts:
        return last
    if last is not None and not is_settled and _sizes(parts) != _sizes(last.parts):
        return _Look(parts, False, BareModel(path.name, None, f"{plain(path.name)} is still being written."))
    try:
        return _Look(parts, is_settled, BareModel(path.name, bare_model(path)))
    except MillraceError as error:
        return _Look(parts, is_settled, BareModel(path.name, None, plain(str(error))))


def bare_model(path: Path) -> ModelConfig:
    """Return the model of a GGUF file, with the context and the pooling of its header. Raises GgufError."""
    try:
        model = ModelConfig(name=split_stem(path), parameters=Parameters(model=str(path.resolve())))
    except ValidationError:
        reason = "cannot be served under its name: a model's name has letters, digits and . _ : - only, and at most 96"
        raise GgufError(f"{path.name} {reason}. Rename it, or write a YAML file for it.") from None
    header = read_gguf(path)
    if header.kind in _NO_MODEL:
        raise GgufError(f"{path.name} is {_NO_MODEL[header.kind]}.")
    trained = header.integer("{}.context_length", model.context_size)
    context = max(_LEAST_CONTEXT, min(trained, model.context_size))
    return model.model_copy(update={"context_size": context, "embeddings": _has_embeddings(header)})


def _has_embeddings(header: GgufHeader) -> bool:
    pooling = header.integer("{}.pooling_type", 0)
    return 0 < pooling < _RANK


def _sizes(parts: list[FolderFile | None]) -> list[int | None]:
    return [None if part is None else part.size for part in parts]
