"""Quantisations in a repository or folder: files of one model, joined where they are split, and the choice between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cli.errors import CommandFailed, ExitCode
from core.memory_sizes import format_bytes

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.ASCII)
_QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))(?=$|[-._/])",
    re.IGNORECASE,
)
_OTHER_FILES: Final = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix)", re.IGNORECASE)
# Quality per byte, as it is commonly judged: four bits first, then more while they fit, then fewer.
_PREFERRED: Final = (
    "Q4_K_M", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4_MOE", "MXFP4", "NVFP4",
    "Q5_K_M", "Q5_K_XL", "Q5_K_L", "Q5_K_S", "Q5_1", "Q5_0", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "IQ3_M", "Q3_K_S",
    "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q6_K_L", "Q6_K", "Q6_K_XL", "Q8_0", "Q8_K_XL", "Q2_K_XL", "Q2_K_L", "Q2_K",
    "IQ2_M", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "BF16", "F16", "F32", "TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "Q2_0",
    "Q1_0",
)  # fmt: skip
_DEFAULT: Final = _PREFERRED[0]


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file and its size; `sha256` where it is known."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """The files of one quantisation, in order; `quant` is empty where their names have none."""

    quant: str
    files: tuple[NamedFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def first(self) -> str:
        return self.files[0].name


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant to use, and a sentence on the reason; empty where there was only one."""

    variant: Variant
    reason: str = ""


def variants(files: Iterable[NamedFile]) -> list[Variant]:
    """Group GGUF files by model, in order of size; parts of a model that read images and the like are left out."""
    groups: dict[str, list[NamedFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        if not file.name.lower().endswith(".gguf") or _OTHER_FILES.search(file.name):
            continue
        part = _PART.fullmatch(file.name)
        groups.setdefault(f"{part['stem']} of {part['count']}" if part else file.name, []).append(file)
    found = [Variant(quant_of(group[0].name), tuple(group)) for group in groups.values()]
    return sorted(found, key=lambda variant: variant.size)


def check_parts(variant: Variant) -> None:
    """Raise CommandFailed if a part of a split model is missing."""
    part = _PART.fullmatch(variant.first)
    if part is None:
        return
    present = {file.name for file in variant.files}
    names = [f"{part['stem']}-{number:05}-of-{part['count']}.gguf" for number in range(1, int(part["count"]) + 1)]
    if missing := [name for name in names if name not in present]:
        raise CommandFailed(f"{missing[0]} is missing: the model has {len(names)} parts, and {len(present)} are there.")


def quant_of(name: str) -> str:
    """The quantisation in a file name, in capitals: the last, since a model's own name may contain one."""
    part = _PART.fullmatch(name)
    stem = part["stem"] if part else name.removesuffix(".gguf")
    found = _QUANT.findall(stem)
    return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else ""


def without_quant(name: str) -> str:
    """A file name without its folder, ending, part number and quantisation: the name of the model."""
    stem = name.rpartition("/")[2]
    part = _PART.fullmatch(stem)
    stem = part["stem"] if part else re.sub(r"\.gguf$", "", stem, flags=re.IGNORECASE)
    found = list(_QUANT.finditer(stem))
    return (stem[: found[-1].start()] if found and found[-1].end() == len(stem) else stem).strip("-._") or stem


def choose(found: Sequence[Variant], quant: str, fitting_bytes: int, where: str) -> Choice:
    """Choose the variant that was named, else Q4_K_M, else the nearest that fits. Raises CommandFailed, which lists them."""
    if quant:
        return Choice(_named(found, quant, where))
    if len(found) == 1:
        return Choice(found[0])
    if len({variant.quant for variant in found}) < len(found):
        raise CommandFailed(f"{where} has several models. Name a file:\n{listing(found)}", ExitCode.USAGE)
    ranked = sorted(found, key=_rank)
    fitting = [variant for variant in ranked if variant.size <= fitting_bytes]
    if not fitting:
        return Choice(found[0], f"it is the smallest, and none fits into {format_bytes(fitting_bytes)}")
    chosen = fitting[0]
    if _plain(chosen.quant) == _DEFAULT:
        return Choice(chosen, "it is the usual compromise of size and quality")
    has_default = any(_plain(variant.quant) == _DEFAULT for variant in found)
    reason = f"{_DEFAULT} does not fit into {format_bytes(fitting_bytes)}" if has_default else f"there is no {_DEFAULT}"
    return Choice(chosen, f"{reason}, and it is the nearest that fits")


def listing(found: Iterable[Variant], chosen: Variant | None = None) -> str:
    """A line for each variant: quantisation, size, first file."""
    rows = [(each.quant or "-", format_bytes(each.size), each.first, "  ← chosen" * (each is chosen)) for each in found]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {quant:<{widths[0]}}  {size:>{widths[1]}}  {name}{mark}" for quant, size, name, mark in rows)


def _named(found: Sequence[Variant], quant: str, where: str) -> Variant:
    wanted = quant.upper()
    same = [variant for variant in found if wanted in (variant.quant, _plain(variant.quant))]
    exact = [variant for variant in same if variant.quant == wanted] or same
    if len(exact) == 1:
        return exact[0]
    reason = f"has no {quant}. It has" if not exact else f"has several files of {quant}. Name one of them"
    raise CommandFailed(f"{where} {reason}:\n{listing(exact or found)}", ExitCode.USAGE)


def _plain(quant: str) -> str:
    return quant.removeprefix("UD-")


def _rank(variant: Variant) -> tuple[int, int]:
    plain = _plain(variant.quant)
    place = _PREFERRED.index(plain) if plain in _PREFERRED else len(_PREFERRED)
    return place, int(variant.quant != plain)
