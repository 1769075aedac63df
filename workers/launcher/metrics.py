"""Metrics of a launcher: its device, engines and processes, and the numbers that its consumers have recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family

from core.counters import CounterName
from core.devices.inventory import Device, read_utilization
from core.process.process_metrics import process_families
from core.process.resource_use import OwnProcess
from core.states import EngineState
from db.workers import DeviceReport, EngineReport
from workers.heartbeat import Status
from workers.metrics.families import exposition, recorded_families
from workers.metrics.snapshots import read_snapshot
from workers.runtime.recorder import merge
from workers.runtime.request_metrics import REQUEST_METRICS

_LABELS: Final = ("device", "model")
_NOW: Final = {
    "running": ("Sequences in slots, or requests at a server upstream.", "num_running"),
    "waiting": ("Sequences in the engine without a slot.", "num_waiting"),
    "kv_tokens": ("Tokens in the KV cache that running sequences hold.", "kv_tokens"),
    "kv_reusable_tokens": ("Tokens in the KV cache of ended sequences, which may be reused.", "kv_reusable_tokens"),
    "kv_total_tokens": ("Tokens that the KV cache has room for.", "kv_total_tokens"),
}
_SETTINGS: Final = ("kv_layout", "flash_attention", "ubatch_tokens", "speculation")
_SPEEDS: Final = {"decode_speed": "answers", "prompt_speed": "prompts"}
_COUNTS: Final = {
    "prompt_tokens": ("Tokens of prompts, also those from the prefix cache.", CounterName.PROMPT_TOKENS),
    "cached_prompt_tokens": ("Those of them that came from the prefix cache.", CounterName.CACHED_PROMPT_TOKENS),
    "generated_tokens": ("Tokens that the engine generated.", CounterName.GENERATED_TOKENS),
}


class LauncherMetrics:
    """The metrics of one launcher, formatted in threads of the metrics server. `consumers` are the sockets of its consumers."""

    def __init__(
        self,
        device: Device,
        status: Callable[[], Status],
        processes: Callable[[], Iterable[OwnProcess]],
        consumers: Sequence[Path],
    ) -> None:
        self._device = device
        self._status = status
        self._processes = processes
        self._consumers = consumers

    def format(self) -> bytes:
        """The text for Prometheus."""
        return exposition(self._families())

    def _families(self) -> Iterator[Family]:
        status = self._status()
        yield from process_families(self._processes())
        yield from self._of_device(status.device)
        yield from self._of_engines(status)
        recorded = merge([read_snapshot(path) for path in self._consumers])
        yield from recorded_families(REQUEST_METRICS, recorded)

    def _of_device(self, report: DeviceReport | None) -> Iterator[Family]:
        labels = [self._device.name, self._device.card]
        total = GaugeMetricFamily("millrace_device_total_bytes", "Memory of the device.", labels=["device", "card"])
        used = GaugeMetricFamily(
            "millrace_device_used_bytes", "Memory of the device in use by all processes.", labels=["device", "card"]
        )
        if report is not None and report.total_bytes is not None and report.free_bytes is not None:
            total.add_metric(labels, report.total_bytes)
            used.add_metric(labels, report.total_bytes - report.free_bytes)
        utilization = GaugeMetricFamily(
            "millrace_device_utilization_ratio",
            "Part of the last moment in which a GPU computed; absent where nothing reports it.",
            labels=["device", "card"],
        )
        if (ratio := read_utilization(self._device)) is not None:
            utilization.add_metric(labels, ratio)
        yield from (total, used, utilization)

    def _of_engines(self, status: Status) -> Iterator[Family]:
        ready = GaugeMetricFamily("millrace_engine_ready", "1: the engine serves its model.", labels=_LABELS)
        slots = GaugeMetricFamily("millrace_engine_slots", "Slots of the engine.", labels=_LABELS)
        settings = InfoMetricFamily("millrace_engine_settings", "The settings with which it computes.", labels=_LABELS)
        speeds = GaugeMetricFamily(
            "millrace_engine_measured_tokens_per_second",
            "Speed that was measured for these settings, of answers or prompts.",
            labels=[*_LABELS, "kind"],
        )
        now = {
            name: GaugeMetricFamily(f"millrace_engine_{name}", text, labels=_LABELS) for name, (text, _) in _NOW.items()
        }
        for engine in status.engines:
            labels = [self._device.name, engine.model]
            ready.add_metric(labels, float(engine.state is EngineState.READY))
            slots.add_metric(labels, engine.slots or 0)
            if engine.settings_json is not None:
                _add_settings(settings, speeds, labels, json.loads(engine.settings_json))
            for name, family in now.items():
                family.add_metric(labels, _activity(engine, _NOW[name][1]))
        yield from (ready, slots, settings, speeds, *now.values())
        totals = Counter(dict(status.totals))
        for name, (text, counter) in _COUNTS.items():
            count = CounterMetricFamily(f"millrace_engine_{name}", text, labels=_LABELS)
            for engine in status.engines:
                count.add_metric([self._device.name, engine.model], totals[counter, engine.model])
            yield count


def _add_settings(
    settings: InfoMetricFamily, speeds: GaugeMetricFamily, labels: list[str], found: Mapping[str, Any]
) -> None:  # Any: JSON
    """Add the settings of an engine, and its speeds where they were measured."""
    settings.add_metric(labels, {name: str(found[name]) for name in _SETTINGS})
    for name, kind in _SPEEDS.items():
        if (speed := found.get(name)) is not None:
            speeds.add_metric([*labels, kind], speed)


def _activity(engine: EngineReport, column: str) -> float:
    return 0.0 if engine.activity is None else float(getattr(engine.activity, column))
