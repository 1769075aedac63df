"""Metrics of this api process, in the Prometheus text format."""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from core.process.process_metrics import process_families
from core.process.resource_use import OwnProcess


class Metrics:
    """Counters of one process; formatted only when `/metrics` is read."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter(
            "millrace_http_requests_total", "Requests answered.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "millrace_http_request_seconds",
            "From the request line to the end of the response.",
            ["route"],
            registry=registry,
            buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )
        self.first_event_seconds = Histogram(
            "millrace_chat_first_event_seconds",
            "From a chat request to the first event of its job.",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.open_streams = Gauge("millrace_open_streams", "Streams being relayed.", registry=registry)
        self.dropped_subscribers = Counter(
            "millrace_dropped_subscribers_total", "Streams that read too slowly.", registry=registry
        )
        self._registry = registry
        self.add(_OwnProcess())

    def add(self, collector: Collector) -> None:
        """Export the metrics of another collector too."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """Return all metrics in the exposition format."""
        return generate_latest(self._registry)


class _OwnProcess(Collector):
    """Version, memory and CPU time of this api process."""

    def collect(self) -> Iterator[Metric]:
        yield from process_families([OwnProcess("api", os.getpid())])
