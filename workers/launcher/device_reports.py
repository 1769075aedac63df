"""Device reports: a launcher's device with its memory, for the rows that metrics and `millrace doctor` show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.devices.inventory import Device, read_memory
from db.workers import DeviceReport
from workers.heartbeat import Status


def with_device(status: Callable[[], Status], device: Device, budget_bytes: int | None) -> Callable[[], Status]:
    """Add the device, as it is at that moment, to each status of its launcher."""

    def report() -> Status:
        memory = read_memory(device)
        return replace(
            status(),
            device=DeviceReport(
                device=device.name,
                card=device.card,
                total_bytes=memory.total_bytes,
                free_bytes=memory.free_bytes,
                budget_bytes=budget_bytes,
            ),
        )

    return report
