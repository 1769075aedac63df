"""Report: the tables that a simulated week ends with."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from core.settings import Settings
from tools.fleet_simulation.shard_queue import Batch
from tools.fleet_simulation.simulation import Simulation
from tools.fleet_simulation.workload import DAY, HOUR, Workload

_LARGE, _MIDDLE = 10, 100  # tenants by the rank of their lines
_ACTIVITY_SECONDS = 2.0  # between two reports of a launcher that has work
_PROCESSES = 3  # of a device, which write heartbeats: launcher, chat and batch consumer


def print_report(simulation: Simulation, workload: Workload, settings: Settings, console: Console) -> None:
    """Print fairness by tenants and windows, then what devices, broker and database had to do."""
    lines = sum(batch.sent.lines for batch in simulation.batches)
    console.print(
        f"{len(simulation.batches):,} batches, {lines:,} lines, {workload.tenants:,} tenants, "
        f"{len(simulation.devices)} devices, {workload.days:g} days"
    )
    console.print(_groups("tenants", simulation.batches, _by_tenant(simulation.batches)))
    console.print(_groups("completion window", simulation.batches, _by_window))
    console.print(_load(simulation, workload, settings))


def _by_tenant(batches: Iterable[Batch]) -> Callable[[Batch], str]:
    lines = defaultdict[int, int](int)
    for batch in batches:
        lines[batch.sent.tenant] += batch.sent.lines
    ranks = {tenant: rank for rank, tenant in enumerate(sorted(lines, key=lines.__getitem__, reverse=True))}

    def group(batch: Batch) -> str:
        rank = ranks[batch.sent.tenant]
        return "1 largest 10" if rank < _LARGE else "2 next 90" if rank < _MIDDLE else "3 others"

    return group


def _by_window(batch: Batch) -> str:
    return f"{batch.sent.window / HOUR:2.0f} h"


def _groups(title: str, batches: Sequence[Batch], group: Callable[[Batch], str]) -> Table:
    """A row for each group of batches: the times from their creation until they begin and end, and the share of late lines."""
    table = Table(title=f"By {title}", box=None, title_justify="left")
    for column in (title, "batches", "lines", "begun p50", "p95", "ended p50", "p95", "late"):
        table.add_column(column, justify="left" if column == title else "right")
    groups = defaultdict[str, list[Batch]](list)
    for batch in batches:
        groups[group(batch)].append(batch)
    for name, members in sorted(groups.items()):
        waits = [batch.first_claim_at - batch.sent.at for batch in members if batch.first_claim_at is not None]
        times = [batch.ended_at - batch.sent.at for batch in members if batch.ended_at is not None]
        lines, late = sum(batch.sent.lines for batch in members), sum(batch.open_lines for batch in members)
        table.add_row(
            name,
            f"{len(members):,}",
            f"{lines / 1e6:,.2f} M",
            *(_duration(seconds) for values in (waits, times) for seconds in _p50_p95(values)),
            f"{late / lines:.1%}",
        )
    return table


def _load(simulation: Simulation, workload: Workload, settings: Settings) -> Table:
    """What the shared parts had to do: in all, each second, and each second of the busiest minute."""
    seconds, devices = workload.days * DAY, simulation.devices
    table = Table(title="What devices, broker and database did", box=None, title_justify="left")
    for column in ("", "in all", "a second", "at most"):
        table.add_column(column, justify="right" if column else "left")
    busy = sum(device.busy_seconds for device in devices) / len(devices) / seconds
    loads = sum(device.num_loads for device in devices)
    table.add_row("devices busy", f"{busy:.0%}", "", "")
    table.add_row(
        "loads of models",
        f"{loads:,}",
        f"{loads / seconds:.3f}",
        f"{loads / len(devices) / workload.days:.0f} a day each",
    )
    table.add_row("most open batches", f"{simulation.most_open:,}", "", "")
    counts = simulation.counts
    for name in sorted(counts.total):
        total, peak = counts.total[name], counts.peak[name] / 60
        table.add_row(name, f"{total:,.0f}", f"{total / seconds:,.1f}", f"{peak:,.1f}")
    heartbeats = len(devices) * _PROCESSES / settings.heartbeat_seconds
    for name, rate in (
        ("heartbeats", heartbeats),
        ("activity reports", len(devices) / _ACTIVITY_SECONDS),
        ("demand looks", float(len(devices))),
    ):
        table.add_row(name, f"{rate * seconds:,.0f}", f"{rate:,.1f}", f"{rate:,.1f}")
    return table


def _p50_p95(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    return statistics.median(values), statistics.quantiles(values, n=20, method="inclusive")[-1]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
