"""Pins a model in its file: sets the key `pinned` and leaves every other character, comments too, as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import yaml

from cli.errors import CommandFailed
from core.errors import ConfigError
from core.models.model_files import ModelCatalog, ModelConfig, load_model, unknown_model
from core.models.models_folder import FolderReader

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY: Final = "pinned"
_YAML: Final = (".yaml", ".yml")


class Pinned(NamedTuple):
    """The file of a model, and the keys that were changed in it, with their new values in YAML."""

    file: Path
    changed: dict[str, str]


def set_pinned(folder: Path, name: str, *, is_pinned: bool) -> Pinned:
    """Pin or unpin the model of this name or alias; a GGUF file without a YAML file gets one.

    A pin also changes keys that a pinned model may not have. Raises CommandFailed when there is no such model, or when the
    file would not be valid.
    """
    models = FolderReader(folder).read().models
    file, model = _find(models, name)
    path = folder / file
    if model.pinned is is_pinned:
        return Pinned(path, {})
    changed = {_KEY: "true" if is_pinned else "false"}
    if not file.lower().endswith(_YAML):
        return Pinned(_describe_bare(path, model), changed)
    if is_pinned and model.load == "lazy":
        changed["load"] = "eager"
    if is_pinned and model.keep_alive_seconds is not None:
        changed["keep_alive_seconds"] = "null"
    text = _read(path)
    for key, value in changed.items():
        text = with_key(text, key, value)
    _write(path.resolve(), text)
    return Pinned(path, changed)


def with_key(text: str, key: str, word: str) -> str:
    """Return the text of a YAML mapping with this value of a key: in its place, or on a line of its own after the name."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was read as a model file"
    values = {node.value: (node, value) for node, value in root.value}
    if key in values:
        _, value = values[key]
        start, end = value.start_mark.index, value.end_mark.index
        return f"{text[:start]}{'' if start < end else ' '}{word}{text[end:]}"
    first, name = values["name"]
    if root.flow_style:
        return f"{text[: name.end_mark.index]}, {key}: {word}{text[name.end_mark.index :]}"
    line_end = text.find("\n", name.end_mark.index)
    if line_end < 0:
        text, line_end = text + "\n", len(text)
    newline = "\r\n" if text[:line_end].endswith("\r") else "\n"
    line = f"{' ' * first.start_mark.column}{key}: {word}{newline}"
    return text[: line_end + 1] + line + text[line_end + 1 :]


def _find(models: Mapping[str, ModelConfig], name: str) -> tuple[str, ModelConfig]:
    catalog = ModelCatalog(list(models.values()))
    model = catalog.get(name)
    if model is None:
        raise CommandFailed(unknown_model(name, catalog).message)
    return next((file, each) for file, each in models.items() if each is model)


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as stream:  # with the line ends and the mark of order that it has
        return stream.read()


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole, if its new text is a valid model file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # hidden, so that no server reads it
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        load_model(draft)
        shutil.copymode(path, draft)
        draft.replace(path)
    except ConfigError as error:
        raise CommandFailed(f"{str(error).replace(draft.name, path.name)} Nothing was changed.") from None
    finally:
        draft.unlink(missing_ok=True)


def _describe_bare(weights: Path, model: ModelConfig) -> Path:
    """Write the YAML file of a GGUF file that is served under its own name."""
    path = weights.with_name(f"{model.name.replace('/', '--').replace(':', '-')}.yaml")
    parameters = model.parameters.model_copy(update={"model": weights.name})
    pinned = model.model_copy(update={"parameters": parameters, _KEY: True})
    values = pinned.model_dump(mode="json", exclude_defaults=True)
    text = "# Written by `millrace models pin`; docs/models.md explains every key.\n"
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    except FileExistsError:
        raise CommandFailed(f"{path} exists and describes another model. Rename it, or write a file for it.") from None
    return path
