"""Folders in the format of Hugging Face: their files, the sizes of their tensors, and what is wrong with one.

`hf:ORG/REPO` names a repository of the hub, which has such a folder in the hub's cache once it is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

from core.errors import MillraceError

HUB_PREFIX: Final = "hf:"
INSTALL: Final = "Install the extra with `make transformers` or `pip install 'millrace[transformers]'`."
_REPOSITORY: Final = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,96})?")
_GENERATE: Final = ("ForCausalLM", "LMHeadModel")
_PACKAGES: Final = ("torch", "transformers")
_MOST_HEADER: Final = 100 << 20  # bytes, the limit of the format itself
_MOST_JSON: Final = 64 << 20
FOLDER_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")  # of a repository
# The other files that decide what a model answers.
_SETTINGS: Final = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja"),
    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
)


class FolderError(MillraceError):
    """The folder is no model in the format of Hugging Face."""


def is_hub_name(name: str) -> bool:
    """Does a name mean a repository of the hub?"""
    return name.startswith(HUB_PREFIX)


def is_valid_hub_name(name: str) -> bool:
    """Is it `hf:ORG/REPO`, with `@REVISION` or without?"""
    return _REPOSITORY.fullmatch(name.removeprefix(HUB_PREFIX)) is not None


def find_folder(name: str) -> Path | None:
    """The folder of a model; for a name of the hub the newest snapshot in its cache, or None without any."""
    if not is_hub_name(name):
        return Path(name) if name and Path(name).is_dir() else None
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    cached = _hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (cached / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision
    folder = cached / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def check_folder(folder: Path) -> None:
    """Raise FolderError, with one sentence, for a folder that is not there or lacks what a model needs."""
    if not folder.is_dir():
        what = "is a file, and the backend transformers reads a folder" if folder.is_file() else "is no folder"
        raise FolderError(f"{folder} {what}")
    if not (folder / "config.json").is_file():
        raise FolderError(f"{folder} has no config.json, so it is no model in the format of Hugging Face")
    if not weight_files(folder):
        raise FolderError(f"{folder} has no weights: there is no file *.safetensors in it")


def is_whole(folder: Path) -> bool:
    """Does the folder have all that a model needs?"""
    try:
        check_folder(folder)
    except FolderError:
        return False
    return True


def missing_packages() -> list[str]:
    """The packages of the extra that are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def weight_files(folder: Path) -> list[Path]:
    """The files of tensors, sorted."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def answer_files(folder: Path) -> list[Path]:
    """All files that decide what the model answers, sorted."""
    settings = (folder / name for name in _SETTINGS)
    return sorted({*weight_files(folder), *(path for path in settings if path.is_file())})


def read_config(folder: Path) -> dict[str, Any]:  # Any: JSON
    """Read config.json; for a model of several parts, of the part that reads text. Raises FolderError."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MOST_JSON:
            raise FolderError(f"{path} is too large for a configuration")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise FolderError(f"{path} is not a JSON object")
    text = values.get("text_config")
    return {**values, **text} if isinstance(text, dict) else values


def architecture(config: dict[str, Any]) -> str:  # Any: JSON
    """The name of the model's class; empty where the configuration names none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def servable_architecture(folder: Path) -> str:
    """The name of the model's class. Raises FolderError for a folder that cannot be served, by what its configuration says."""
    check_folder(folder)
    config = read_config(folder)
    if not (name := architecture(config)):
        raise FolderError(f"{folder / 'config.json'} names no class of a model in `architectures`")
    if config.get("is_encoder_decoder"):
        raise FolderError(f"{name} is an encoder and a decoder; the backend transformers serves only one of the two")
    if "vision_config" in config or "audio_config" in config:
        raise FolderError(f"{name} reads images or sound; the backend transformers serves models of text only")
    return name


def generates(name: str) -> bool:
    """Does a model of this class generate text? All others give vectors."""
    return name.endswith(_GENERATE)


def has_chat_template(folder: Path) -> bool:
    """Does the tokenizer of the folder have a chat template?"""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def tensor_counts(folder: Path) -> dict[str, int]:
    """The numbers in all tensors, by their format (`F32`, `BF16` …), from the headers of the files. Raises FolderError."""
    counts: dict[str, int] = {}
    for path in weight_files(folder):
        for tensor in _tensors(path):
            counts[tensor[0]] = counts.get(tensor[0], 0) + tensor[1]
    return counts


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    """Format and number of values of each tensor in a file."""
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > min(_MOST_HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield str(tensor["dtype"]), prod(int(number) for number in tensor["shape"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
        raise FolderError(f"{path} is not a whole safetensors file: {error}") from None


def _hub_cache() -> Path:
    """The folder of the hub's cache, by the variables that its own library reads."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
