"""Delays between the attempts to deliver a webhook."""

from __future__ import annotations

from datetime import timedelta

from workers.maintenance.webhook_delivery import retry_delay


def test_delays_double_to_an_hour_and_differ() -> None:
    assert [retry_delay(n, lambda: 0.0).total_seconds() for n in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert retry_delay(1, lambda: 1.0).total_seconds() == 2.5
    assert retry_delay(11, lambda: 0.0) == retry_delay(10_000, lambda: 0.0) == timedelta(hours=1)
    assert len({retry_delay(8) for _ in range(50)}) > 1
