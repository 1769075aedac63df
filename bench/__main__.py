"""`python -m bench`: every measurement, as a table and as JSON in `.bench/results.json`. Name some to run only those."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.chat import first_token, many_streams
from bench.engine import compare
from bench.models import SMOL135
from bench.pipeline import big_file, pipeline

_RESULTS = Path(".bench") / "results.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One number beside what it should be; `target` is a minimum unless `is_limit`."""

    what: str
    value: float
    unit: str
    target: float
    is_limit: bool = False

    @property
    def is_met(self) -> bool:
        """As good as it should be?"""
        return self.value <= self.target if self.is_limit else self.value >= self.target


def _pipeline(folder: Path) -> list[Result]:
    rates = [run.lines_per_second for run in pipeline(folder)]
    return [Result(what="batch of 20,000 lines, all hops", value=statistics.median(rates), unit="lines/s", target=1500)]


def _memory(folder: Path) -> list[Result]:
    _, peak = big_file(folder)
    return [
        Result(what=f"200 MB, 50,000 lines: {name}", value=size / 2**20, unit="MiB", target=300, is_limit=True)
        for name, size in sorted(peak.peaks.items())
    ]


def _chat(_: Path) -> list[Result]:
    runs = [first_token() for _ in range(3)]
    streams = [many_streams() for _ in range(3)]
    p50, p99 = statistics.median(run.p50 for run in runs), statistics.median(run.p99 for run in runs)
    rate = statistics.median(run.tokens_per_second for run in streams)
    lost = sum(run.tokens_lost for run in streams)
    return [
        Result(what="first token, one client, p50", value=p50, unit="ms", target=8, is_limit=True),
        Result(what="first token, one client, p99", value=p99, unit="ms", target=25, is_limit=True),
        Result(what="32 streams of 100 tokens", value=rate, unit="tokens/s", target=5000),
        Result(what="tokens lost in them", value=lost, unit="tokens", target=0, is_limit=True),
    ]


def _engine(_: Path) -> list[Result]:
    rows = []
    for slots in (1, 8, 16, 32):
        ours, bare = compare(SMOL135.num_tokens, SMOL135.path(), slots)
        rows.append(Result(what=f"engine over bare loop, {slots} slots", value=ours / bare, unit="ratio", target=0.96))
    return rows


_MEASUREMENTS: dict[str, Callable[[Path], list[Result]]] = {
    "pipeline": _pipeline,
    "memory": _memory,
    "chat": _chat,
    "engine": _engine,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *_MEASUREMENTS], help="which; default: all")
    names = parser.parse_args().names or list(_MEASUREMENTS)
    results = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
            results += _MEASUREMENTS[name](Path(folder))
    table = Table("what", "measured", "target", "met")
    for one in results:
        sign = "≤" if one.is_limit else "≥"
        table.add_row(
            one.what, f"{one.value:,.2f} {one.unit}", f"{sign} {one.target:,g}", "yes" if one.is_met else "NO"
        )
    Console(width=110).print(table)
    _RESULTS.parent.mkdir(exist_ok=True)
    rows = [{"what": r.what, "value": r.value, "unit": r.unit, "target": r.target, "met": r.is_met} for r in results]
    _RESULTS.write_text(json.dumps({"at": time.time(), "cores": os.cpu_count(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
