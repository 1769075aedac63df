"""Ratios of earlier runs on the same kind of machine, one file for each kind; a ratio compares two things within one run."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.result import Result

_FOLDER: Final = Path(__file__).parent / "committed"
_TOLERANCE: Final = 0.05  # of the committed ratio; noise alone changes one by less
# The widest instructions first. They decide what prompts cost, so ratios of machines with others cannot be compared.
_VECTORS: Final = {"avx512f": "AVX-512", "avx2": "AVX2"}


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of this machine: processor, its widest vector instructions, and number of usable cores."""
    cores = len(os.sched_getaffinity(0))
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    vectors = next((f" with {name}" for flag, name in _VECTORS.items() if flag in flags), "")
    return f"{facts.get('model name', platform.machine())}{vectors}, {cores} cores"


def committed_ratios(folder: Path = _FOLDER) -> dict[str, float]:
    """Ratios by the names of their rows; empty for a kind of machine that has none."""
    path = _path(folder)
    found: dict[str, float] = json.loads(path.read_text())["ratios"] if path.exists() else {}
    return found


def commit(results: list[Result], folder: Path = _FOLDER) -> None:
    """Keep the ratios of these rows; others that were measured before stay."""
    ratios = committed_ratios(folder) | {
        _key(result): round(result.value, 3) for result in results if result.unit == "ratio"
    }
    folder.mkdir(exist_ok=True)
    _path(folder).write_text(json.dumps({"machine": machine(), "ratios": ratios}, indent=1, ensure_ascii=False) + "\n")


def losses(results: list[Result], before: Mapping[str, float]) -> list[str]:
    """A sentence for each ratio that is worse than the committed one by more than noise."""
    found = []
    for result in results:
        then = before.get(_key(result))
        if result.unit != "ratio" or not then:
            continue
        change = result.value / then - 1
        if (change if result.is_limit else -change) > _TOLERANCE:
            found.append(
                f"{result.name}: {result.value:.2f}, slower than the committed {then:.2f} by {abs(change):.0%}."
            )
    return found


def _key(result: Result) -> str:
    """The name of a row without what is in brackets: numbers of this run."""
    return re.sub(r" \([^)]*\)", "", result.name)


def _path(folder: Path) -> Path:
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', machine().lower()).strip('-')}.json"
