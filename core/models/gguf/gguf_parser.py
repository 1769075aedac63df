"""Parses GGUF files up to their weights: keys with their values, and the tensor table.

A file may come from anywhere: counts, lengths and types are checked before memory or time is spent on them, and each defect
raises GgufError. Source of the format: `gguf.cpp` of llama.cpp, whose limits are kept; versions 2 and 3, little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

from core.errors import MillraceError
from core.models.gguf.ggml_types import TENSOR_TYPES, TensorType

_MAGIC: Final = b"GGUF"
_MAX_ENTRIES: Final = 1 << 16  # keys, and tensors
_MAX_HEADER_BYTES: Final = 1 << 28
_MAX_STRINGS: Final = 1 << 22  # in all arrays; a vocabulary of 262k tokens has about 800k with its merges
_MAX_KEPT_BYTES: Final = 1 << 24  # of texts in memory
_MAX_KEPT_ITEMS: Final = 1024  # more than the layers of a model
_MAX_TENSOR_NAME: Final = 64
_MAX_DIMENSIONS: Final = 4
_ALIGNMENT: Final = "general.alignment"
_CHUNK: Final = 1 << 16
_STRING, _ARRAY = 8, 9
_CODES: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS: Final = {number: struct.Struct(f"<{code}") for number, code in _CODES.items()}
_LENGTH: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<I")
_OTHER_FILES: Final = {
    b"version https://git-lfs": "it is a Git LFS pointer to the model: fetch the model itself, for example with `git lfs pull`",
    b"<!DOCTYPE": "it is a web page: download the file behind it",
    b"<html": "it is a web page: download the file behind it",
    b"PK\x03\x04": "it is a ZIP archive or a PyTorch file: only GGUF files can be served",
    **dict.fromkeys((b"tjgg", b"fmgg", b"lmgg"), "it has a format that came before GGUF: convert the model again"),
}


class GgufError(MillraceError):
    """The file cannot be read as a GGUF file."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """Stands for a value that is too long to keep: an array of `count` items, or a text of `count` bytes."""

    count: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | Omitted


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor; the first number of its shape is the length of a row."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements // self.type.block * self.type.num_bytes


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The head of one file."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]


def parse_file(path: Path) -> ParsedFile:
    """Parse one file, whether or not it is all of its model. Raises GgufError."""
    if not path.is_file():  # before it is opened: a pipe would wait for a writer
        raise GgufError(f"There is no file {path}.")
    try:
        with path.open("rb", buffering=0) as stream:
            return _Parser(path, stream, path.stat().st_size).parse()
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror or error}.") from None


class _Parser:
    """Reads a file from its start in chunks; a position beyond the end of the file raises GgufError."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self._path = path
        self._stream = stream
        self._size = size
        self._buffer = b""
        self._start = 0  # of the buffer, in the file
        self._at = 0  # in the buffer
        self._num_strings = 0
        self._kept_bytes = 0

    def parse(self) -> ParsedFile:
        version = self._version()
        num_tensors, num_keys = (int(self._scalar(_LENGTH)) for _ in range(2))
        for count, noun in ((num_keys, "keys"), (num_tensors, "tensors")):
            if count > _MAX_ENTRIES:
                raise self._error(f"it announces {count:,} {noun}")
        metadata = dict(self._pairs(num_keys))
        if len(metadata) != num_keys:
            raise self._error("a key is there twice")
        tensors = tuple(self._tensor() for _ in range(num_tensors))
        refuse_duplicates(self._path, tensors)
        self._check_data(metadata, tensors)
        return ParsedFile(version, metadata, tensors)

    def _version(self) -> int:
        begin = self._take(min(self._size, 32))
        for start, reason in _OTHER_FILES.items():
            if begin.lower().startswith(start.lower()):
                raise GgufError(f"{self._path.name} is no GGUF file: {reason}.")
        if begin[8:10] == b'{"':
            raise GgufError(
                f"{self._path.name} is a safetensors file: get a GGUF file of the model, or convert its folder with "
                "`convert_hf_to_gguf.py` of llama.cpp."
            )
        if not begin.startswith(_MAGIC):
            reason = "does not start with `GGUF`" if begin else "is empty"
            raise GgufError(f"{self._path.name} is no GGUF file: it {reason}.")
        self._at = len(_MAGIC)
        version = int(self._scalar(_COUNT))
        if version & 0xFFFF == 0:
            raise GgufError(f"{self._path.name} is a big-endian GGUF file: convert the model again, for little endian.")
        if version not in (2, 3):
            raise GgufError(f"{self._path.name} has version {version} of GGUF; versions 2 and 3 can be read.")
        return version

    def _pairs(self, count: int) -> Iterator[tuple[str, Value]]:
        for _ in range(count):
            key = self._text()
            yield key, self._value(key, int(self._scalar(_COUNT)))

    def _value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            return self._kept_text()
        if kind != _ARRAY:
            return self._scalar(self._format(key, kind))
        kind, count = int(self._scalar(_COUNT)), int(self._scalar(_LENGTH))
        if kind == _STRING:
            return self._strings(key, count)
        item = self._format(key, kind)  # refuses an array of arrays, too
        if count > _MAX_KEPT_ITEMS:
            self._skip(count * item.size)
            return Omitted(count)
        return tuple(self._scalar(item) for _ in range(count))

    def _format(self, key: str, kind: int) -> struct.Struct:
        found = _SCALARS.get(kind)
        if found is None:
            raise self._error(f"the key {key[:80]!r} has the unknown type {kind}")
        return found

    def _strings(self, key: str, count: int) -> Value:
        self._num_strings += count
        if self._num_strings > _MAX_STRINGS:
            raise self._error(f"the key {key[:80]!r} announces {count:,} texts")
        if count > _MAX_KEPT_ITEMS:
            self._skip_strings(count)
            return Omitted(count)
        items = tuple(self._kept_text() for _ in range(count))
        return tuple(item for item in items if isinstance(item, str)) if items else ()

    def _skip_strings(self, count: int) -> None:
        """Skip texts; the inner loop takes about 0.2 µs for each."""
        unpack = _LENGTH.unpack_from
        while count:
            self._need(_LENGTH.size)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - _LENGTH.size
            while count and at <= last:
                at += _LENGTH.size + unpack(buffer, at)[0]
                count -= 1
            self._skip(at - self._at)

    def _tensor(self) -> Tensor:
        name = self._text(_MAX_TENSOR_NAME)
        num_dimensions = int(self._scalar(_COUNT))
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._error(f"the tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(int(self._scalar(_LENGTH)) for _ in range(num_dimensions)) or (1,)
        number, offset = int(self._scalar(_COUNT)), int(self._scalar(_LENGTH))
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            raise GgufError(
                f"{self._path.name}: the tensor {name!r} has the number format {number}, which llama.cpp does not have here. "
                "Use another quantisation of the model."
            )
        if shape[0] % kind.block or prod(shape) >= 1 << 63:
            raise self._error(f"the tensor {name!r} has the impossible shape {shape} for {kind.name}")
        return Tensor(name, shape, kind, offset)

    def _check_data(self, metadata: Mapping[str, Value], tensors: tuple[Tensor, ...]) -> None:
        """Check that the weights follow each other and end within the file."""
        alignment = metadata.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"{_ALIGNMENT} is no power of 2")
        end = 0
        for tensor in tensors:
            if tensor.offset != _padded(end, alignment):
                raise self._error(f"the tensor {tensor.name!r} does not follow the one before it")
            end = tensor.offset + tensor.num_bytes
        start = _padded(self._position, alignment)
        if tensors and start + end > self._size:
            raise GgufError(
                f"{self._path.name} is incomplete: it has {self._size:,} of {start + end:,} bytes. Download it again."
            )

    def _kept_text(self) -> str | Omitted:
        length = int(self._scalar(_LENGTH))
        self._kept_bytes += length
        if self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= length
            self._skip(length)
            return Omitted(length)
        return self._take(length).decode(errors="replace")

    def _text(self, most: int = 1 << 16) -> str:
        """A name; as in llama.cpp, it is shorter than `most` bytes and not empty."""
        length = int(self._scalar(_LENGTH))
        if not 0 < length < most:
            raise self._error(f"a name has {length:,} bytes")
        return self._take(length).decode(errors="replace")

    def _scalar(self, form: struct.Struct) -> Scalar:
        self._need(form.size)
        value: Scalar = form.unpack_from(self._buffer, self._at)[0]
        self._at += form.size
        return value

    def _take(self, length: int) -> bytes:
        self._need(length)
        taken = self._buffer[self._at : self._at + length]
        self._at += length
        return taken

    @property
    def _position(self) -> int:
        return self._start + self._at

    def _skip(self, length: int) -> None:
        if length > self._size - self._position:
            raise self._truncated()
        self._at += length

    def _need(self, length: int) -> None:
        """Have that many bytes in the buffer, from the position on."""
        if self._at + length <= len(self._buffer):
            return
        position = self._position
        if length > self._size - position:
            raise self._truncated()
        if position + length > _MAX_HEADER_BYTES:
            raise self._error(f"its metadata is longer than {_MAX_HEADER_BYTES >> 20} MiB")
        self._stream.seek(position)
        chunks, missing = [], max(length, min(_CHUNK, self._size - position))
        while missing > 0 and (chunk := self._stream.read(missing)):
            chunks.append(chunk)
            missing -= len(chunk)
        self._buffer, self._start, self._at = b"".join(chunks), position, 0
        if len(self._buffer) < length:  # the file has become shorter
            raise self._truncated()

    def _truncated(self) -> GgufError:
        return GgufError(f"{self._path.name} is incomplete: it ends within its metadata. Download it again.")

    def _error(self, reason: str) -> GgufError:
        return GgufError(f"{self._path.name} is damaged: {reason}. Download it again.")


def refuse_duplicates(path: Path, tensors: tuple[Tensor, ...]) -> None:
    """Raise GgufError for a name that two tensors have."""
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise GgufError(f"{path.name} is damaged: the tensor {twice!r} is there twice. Download it again.")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
