"""The header of a GGUF model: metadata and tensors of all its parts, read without llama.cpp and without the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

from core.models.gguf.ggml_types import FILE_TYPES
from core.models.gguf.gguf_parser import GgufError, Omitted, Tensor, Value, parse_file, refuse_duplicates

__all__ = [
    "GgufError",
    "GgufHeader",
    "GgufKind",
    "Omitted",
    "Tensor",
    "is_further_part",
    "part_paths",
    "read_gguf",
    "read_part",
    "split_paths",
    "split_stem",
]

MAX_LAYERS: Final = 512  # of llama.cpp
_MAX_PARTS: Final = 1000
_PART: Final = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GgufKind(StrEnum):
    """The contents of a file."""

    MODEL = "model"
    ADAPTER = "adapter"  # LoRA
    PROJECTOR = "projector"  # images or audio for a model, `mmproj`
    IMPORTANCE_MATRIX = "importance matrix"
    VOCABULARY = "vocabulary"  # a model without weights


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors of a model, of all its parts. In keys, `{}` stands for the architecture."""

    paths: tuple[Path, ...]
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @cached_property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def kind(self) -> GgufKind:
        """The contents, from `general.type`, the architecture and the presence of weights."""
        of_type = {"adapter": GgufKind.ADAPTER, "mmproj": GgufKind.PROJECTOR, "imatrix": GgufKind.IMPORTANCE_MATRIX}
        if found := of_type.get(self.text("general.type")):
            return found
        if self.architecture == "clip":
            return GgufKind.PROJECTOR
        return GgufKind.MODEL if self.tensors else GgufKind.VOCABULARY

    @property
    def quantization(self) -> str:
        """Name such as `Q4_K_M`; empty where the file has none that is known."""
        return FILE_TYPES.get(self.integer("general.file_type", -1), "")

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights, as `llama_model_size` of llama.cpp counts them."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def num_layers(self) -> int:
        return self.integer("{}.block_count", 0, most=MAX_LAYERS)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        tokens = self.value("tokenizer.ggml.tokens")
        return tokens.count if isinstance(tokens, Omitted) else len(tokens) if isinstance(tokens, tuple) else 0

    def value(self, key: str) -> Value | None:
        """The value of a key, or None."""
        return self.metadata.get(key.replace("{}", self.text("general.architecture")) if "{}" in key else key)

    def text(self, key: str) -> str:
        """A text; empty where there is none."""
        found = self.metadata.get(key)
        return found if isinstance(found, str) else ""

    def integer(self, key: str, default: int = 0, *, most: int = 1 << 40) -> int:
        """A whole number from 0 to `most`; raises GgufError for other values. Of an array, the largest item."""
        found = self.value(key)
        if found is None:
            return default
        items = found if isinstance(found, tuple) else (found,)
        return max((self._checked(key, item, most) for item in items), default=default)

    def per_layer(self, key: str, default: int = 0, *, most: int = 1 << 24) -> list[int]:
        """A whole number for each layer, from an array or from one number for all; missing items are the default."""
        found = self.value(key)
        if not isinstance(found, tuple):
            return [self.integer(key, default, most=most)] * self.num_layers
        items = [self._checked(key, item, most) for item in found[: self.num_layers]]
        return items + [default] * (self.num_layers - len(items))

    def _checked(self, key: str, item: object, most: int) -> int:
        if not isinstance(item, int) or not 0 <= item <= most:
            shown = key.replace("{}", self.architecture)
            raise GgufError(f"{self.paths[0].name}: {shown} is no whole number from 0 to {most}.")
        return int(item)


def read_gguf(path: Path) -> GgufHeader:
    """Read a file and, if it is the first part of a split model, its other parts beside it. Raises GgufError."""
    first = read_part(path)
    count = first.integer("split.count", 1, most=1 << 16)
    if count <= 1:
        return first
    if number := first.integer("split.no", 0, most=1 << 16):
        raise GgufError(f"{path.name} is part {number + 1} of {count} of a model. Name its first part.")
    headers = [first, *(read_part(part) for part in part_paths(path, count)[1:])]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    refuse_duplicates(path, tensors)
    total = first.integer("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise GgufError(
            f"{path.name}: the parts have {len(tensors)} tensors together, not {total}. Download them again."
        )
    return GgufHeader(tuple(each.paths[0] for each in headers), first.version, first.metadata, tensors)


def part_paths(path: Path, count: int) -> list[Path]:
    """Paths of all parts of a split model, by the name of the first; raises GgufError if one is missing."""
    found = _PART.match(path.name)
    if found is None or int(found["count"]) != count or int(found["number"]) != 1:
        raise GgufError(
            f"{path.name} is the first of {count} parts, which llama.cpp finds only by names such as "
            f"NAME-00001-of-{count:05}.gguf. Rename them."
        )
    paths = [path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more parts are" if len(missing) > 1 else " is"
        raise GgufError(f"{missing[0]}{others} missing beside {path.name}. All {count} parts must be in one folder.")
    return paths


def split_paths(path: Path) -> list[Path]:
    """Paths of all parts of the split model that a file is part of by its name, whether or not they exist; else the path."""
    found = _PART.match(path.name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= _MAX_PARTS:
        return [path]
    numbers = range(1, int(found["count"]) + 1)
    return [path.with_name(f"{found['stem']}-{number:05}-of-{found['count']}.gguf") for number in numbers]


def split_stem(path: Path) -> str:
    """Name of a file without its suffix, and without the number that makes it a part of a split model."""
    return path.stem if len(split_paths(path)) == 1 else path.stem[: -len("-00001-of-00001")]


def is_further_part(name: str) -> bool:
    """Is this the file name of a part of a split model, other than its first?"""
    found = _PART.match(name)
    return found is not None and int(found["number"]) != 1


def read_part(path: Path) -> GgufHeader:
    """Read one file, whether or not it is all of its model. Raises GgufError."""
    part = parse_file(path)
    return GgufHeader((path,), part.version, part.metadata, part.tensors)
