"""Removal of a model: the files that only it uses, and those that stay, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.errors import CommandFailed
from core.field_errors import nearest
from core.models.engine_options import BackendKind
from core.models.folder_files import is_yaml
from core.models.gguf.gguf_header import split_paths
from core.models.model_files import ModelConfig
from core.models.models_folder import FolderContents, FolderReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The files to remove, weights first, so that what is left after a failure is still the model; and the others."""

    model: str
    files: tuple[Path, ...]
    kept: Mapping[Path, str]
    freed_bytes: int


def plan_removal(folder: Path, name: str) -> Removal:
    """Find the files of a model. Raises CommandFailed for a name that no file of the folder describes."""
    contents = FolderReader(folder).read()
    file, model = _find(folder, contents, name)
    others = {each: config for each, config in contents.models.items() if each != file}
    weights, links, kept = [], [], dict[Path, str]()
    for path in _weights(model, folder):
        if user := _user(folder, path, others, contents.problems):
            kept[path] = user
            continue
        links += _links(folder, path)
        if not path.is_relative_to(folder.resolve()):
            kept[path] = f"it is not in {folder}"
        elif path.is_file():
            weights.append(path)
    files = dict.fromkeys([*weights, *links, *([folder / file] if is_yaml(file) else [])])
    return Removal(model=name, files=tuple(files), kept=kept, freed_bytes=sum(map(_freed_bytes, files)))


def remove(removal: Removal, folder: Path) -> list[str]:
    """Remove the files, and folders that are empty then. Returns the names under which the folder serves what stays."""
    before = {model.name for model in FolderReader(folder).read().models.values()}
    for path in removal.files:
        path.unlink(missing_ok=True)
        _remove_empty(path.parent, folder)
    after = {model.name for model in FolderReader(folder).read().models.values()}
    return sorted(after - (before - {removal.model}))


def _find(folder: Path, contents: FolderContents, name: str) -> tuple[str, ModelConfig]:
    for file, model in contents.models.items():
        if model.name == name:
            return file, model
        if name in model.aliases:
            raise CommandFailed(f"{name} is another name of {model.name}: millrace models remove {model.name}")
    for file, problem in contents.problems.items():
        if Path(file).stem == name or file == name:
            raise CommandFailed(f"No valid file describes {name}: {problem} Delete {folder / file} yourself.")
    names = sorted(model.name for model in contents.models.values())
    similar = nearest(name, names) or "."
    listed = f"Models: {', '.join(names) or 'none'}. Another folder is named with --models-dir."
    raise CommandFailed(f"There is no model {name!r} in {folder}{similar} {listed}")


def _weights(model: ModelConfig, folder: Path) -> Iterator[Path]:
    """Yield the files that the model's engine reads: all parts of its weights, and its adapters.

    For transformers, yield all files of its own folder, where that is in the models folder.
    """
    own = Path(model.weights)
    if model.backend is BackendKind.TRANSFORMERS and own.is_dir() and own.is_relative_to(folder.resolve()):
        yield from sorted(path for path in own.rglob("*") if not path.is_dir())
    elif model.weights:
        yield from split_paths(Path(model.weights))
    yield from (Path(adapter.path) for adapter in model.lora)


def _user(folder: Path, path: Path, others: Mapping[str, ModelConfig], problems: Mapping[str, str]) -> str | None:
    """Return what else uses a file: a model, or a YAML file that is not valid and may be corrected."""
    user = next((model.name for model in others.values() if path in _weights(model, folder)), None)
    if user is not None:
        return f"the model {user} uses it"
    invalid = (file for file in problems if is_yaml(file) and (folder / file).is_file())
    user = next((file for file in invalid if path.name.encode() in (folder / file).read_bytes()), None)
    return None if user is None else f"{user}, which is not valid, may use it"


def _links(folder: Path, path: Path) -> list[Path]:
    """Links in the folder to a file; each would be a model of its own, or a link to nothing."""
    return [each for each in sorted(folder.iterdir()) if each.is_symlink() and each.resolve() == path]


def _freed_bytes(path: Path) -> int:
    """Bytes that are free without this name: none of a link, or of a file that has another name."""
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 and not path.is_symlink() else 0


def _remove_empty(place: Path, folder: Path) -> None:
    root = folder.resolve()
    while place.resolve() != root and place.resolve().is_relative_to(root) and not any(place.iterdir()):
        place.rmdir()
        place = place.parent
