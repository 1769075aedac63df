"""Run the measurements and print a table: `python -m bench [NAME …]`; the default is all short ones.

The table also goes to `.bench/results.json`. Its ratios, which are measured within one run, are compared with those that are
committed for this kind of machine (`bench/committed`); `--commit` makes this run's ratios those.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.committed import commit, committed_ratios, losses, machine
from bench.measurements import LONG_MEASUREMENTS, MEASUREMENTS
from bench.result import Result

_RESULTS: Final = Path(".bench") / "results.json"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [*MEASUREMENTS, *LONG_MEASUREMENTS]
    parser.add_argument("names", nargs="*", choices=[[], *names], help="measurements to run; default: all short ones")
    parser.add_argument(
        "--minutes", type=float, default=10, help="duration of residency and residency-gguf; default: 10"
    )
    parser.add_argument("--lines", type=int, default=200_000, help="of the batch of scale; default: 200,000; 0: none")
    parser.add_argument(
        "--rows", type=int, default=2_000_000, help="of scale, in the database; default: 2,000,000; 0: none"
    )
    parser.add_argument("--commit", action="store_true", help="keep the ratios of this run for later comparisons")
    arguments = parser.parse_args()
    chosen: list[str] = arguments.names or list(MEASUREMENTS)
    results: list[Result] = []
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
            measure = LONG_MEASUREMENTS.get(name)
            rows = measure(Path(folder), arguments) if measure is not None else MEASUREMENTS[name](Path(folder))
        for row in rows:
            print(f"{row.name}: {row.value:,.2f} {row.unit}", flush=True)
        results += rows
    _show(results)
    _record(results)
    broken = [result for result in results if not result.is_met]
    for result in broken:
        print(f"{result.name}: {result.value:,.2f} {result.unit} does not reach the target {result.target:,g}.")
    for loss in losses(results, committed_ratios()):
        print(loss)
    if arguments.commit:
        commit(results)
    if broken and any(name in LONG_MEASUREMENTS for name in chosen):
        sys.exit(1)


def _show(results: list[Result]) -> None:
    table = Table("measurement", "measured", "target", "met")
    for result in results:
        sign = "≤" if result.is_limit else "≥"
        table.add_row(
            result.name,
            f"{result.value:,.2f} {result.unit}",
            f"{sign} {result.target:,g}",
            "yes" if result.is_met else "NO",
        )
    Console(width=110).print(table)


def _record(results: list[Result]) -> None:
    _RESULTS.parent.mkdir(exist_ok=True)
    rows = [
        {"name": result.name, "value": result.value, "unit": result.unit, "target": result.target, "met": result.is_met}
        for result in results
    ]
    record = {"at": time.time(), "machine": machine(), "cores": os.cpu_count(), "results": rows}
    _RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
