"""Families: recorded numbers in the form of prometheus_client, and all of them as Prometheus's text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from core.process.process_metrics import process_families
from core.process.resource_use import OwnProcess
from workers.runtime.clerk_metrics import CLERK_METRICS
from workers.runtime.recorder import Metric, Snapshot

_INFINITE: Final = "+Inf"


def exposition(families: Iterable[Family]) -> bytes:
    """The text of these families."""
    registry = CollectorRegistry()
    registry.register(_Given(list(families)))
    return generate_latest(registry)


def clerk_exposition(snapshot: Snapshot) -> bytes:
    """The metrics of this process, which is a clerk."""
    own = process_families([OwnProcess("clerk", os.getpid())])
    return exposition([*own, *recorded_families(CLERK_METRICS, snapshot)])


class _Given(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def recorded_families(metrics: Iterable[Metric], snapshot: Snapshot) -> Iterator[Family]:
    """The families of these metrics, also of those without any value yet."""
    for metric in metrics:
        series = snapshot.get(metric.name, [])
        if not metric.bounds:
            counter = CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
            for each in series:
                counter.add_metric(each.labels, each.values[0])
            yield counter
            continue
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        for each in series:
            bounds = [*(str(bound) for bound in metric.bounds), _INFINITE]
            below = 0.0
            buckets = [(bound, below := below + number) for bound, number in zip(bounds, each.values, strict=True)]
            histogram.add_metric(each.labels, buckets=buckets, sum_value=each.sum)
        yield histogram
