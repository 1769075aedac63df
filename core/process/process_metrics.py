"""Metrics of processes: version, memory and CPU time of this one and of its children."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from core.process.resource_use import OwnProcess, resource_use
from core.version import VERSION


def process_families(processes: Iterable[OwnProcess]) -> Iterator[Metric]:
    """Version, memory and CPU time of this process and its children; those that have ended are left out."""
    labels = ["process", "model"]
    memory = GaugeMetricFamily("millrace_process_resident_memory_bytes", "Resident memory of a process.", labels=labels)
    cpu = CounterMetricFamily("millrace_process_cpu_seconds", "CPU time of a process.", labels=labels)
    build = GaugeMetricFamily(
        "millrace_build_info", "1; the version is in the labels.", labels=["process", "version", "python"]
    )
    for kind, pid, model in processes:
        use = resource_use(pid)
        if use is not None:
            memory.add_metric([kind, model], use.resident_bytes)
            cpu.add_metric([kind, model], use.cpu_seconds)
        if pid == os.getpid():
            build.add_metric([kind, VERSION, platform.python_version()], 1)
    yield from (memory, cpu, build)
