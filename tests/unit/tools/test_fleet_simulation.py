"""The simulated fleet: no line is lost or doubled, and the order of claims is that of the product."""

from __future__ import annotations

import pytest

from core.settings import load_settings
from tools.fleet_simulation.device import Model
from tools.fleet_simulation.simulation import Simulation
from tools.fleet_simulation.workload import DAY, HOUR, Arrival, Workload


def simulate(arrivals: list[Arrival], models: list[Model], devices: int, days: float, replicas: int | None = None):
    made = Simulation(models, devices, 24, load_settings(), replicas=replicas)
    made.run(iter(arrivals), days * DAY)
    return made


def batch(lines: int, at: float = 0.0, tenant: int = 0, window: float = DAY, priority: int = 0) -> Arrival:
    return Arrival(at=at, tenant=tenant, model=0, lines=lines, window=window, priority=priority)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_line_ends_once_or_misses_its_deadline(seed: int) -> None:
    workload = Workload(tenants=50, models=6, lines=200_000, days=3, seed=seed)
    models = [Model(f"m{number}", 8 + number, 2.5, 20.0) for number in range(6)]
    made = simulate(list(workload.arrivals()), models, 6, 4)
    ended = sum(one.sent.lines - one.open_lines for one in made.batches)
    assert sum(one.sent.lines for one in made.batches) == 200_000
    assert all(one.ended_at is not None for one in made.batches), "all windows are over"
    assert all(one.open_lines == 0 or one.ended_at == one.expires_at for one in made.batches)
    assert 0.5 < ended / 200_000 <= 1
    assert sum(made.running.values()) == 0
    assert sum(device.busy_seconds for device in made.devices) == pytest.approx(ended * 2.5, rel=1e-3)


def test_a_higher_priority_and_then_an_earlier_deadline_are_claimed_first() -> None:
    slow = [Model("m", 20, 1.0, 1.0)]
    late, urgent, early = batch(1000), batch(1000, at=1, priority=5), batch(1000, at=1, window=4 * HOUR)
    made = simulate([late, urgent, early], slow, 1, 1)
    ends = {one.sent: one.ended_at for one in made.batches}
    assert ends[urgent] < ends[early] < ends[late]


def test_tenants_with_the_same_deadline_share_the_devices() -> None:
    models = [Model("m", 20, 1.0, 1.0)]
    made = simulate([batch(20_000), batch(1000, at=1, tenant=1)], models, 2, 1)
    first, second = made.batches
    assert second.ended_at is not None
    assert second.ended_at < 3000, "it does not wait for the 20,000 lines before it"
    assert first.open_lines == 0


def test_idle_devices_help_up_to_the_replicas() -> None:
    models = [Model("a", 20, 1.0, 1.0), Model("m", 20, 1.0, 1.0)]  # all devices begin with `a`
    sent = [Arrival(at=0.5, tenant=0, model=1, lines=20_000, window=DAY, priority=0)]
    alone, many = simulate(sent, models, 5, 1, replicas=1), simulate(sent, models, 5, 1)
    (slow,), (fast,) = alone.batches, many.batches
    assert slow.ended_at > 20_000
    assert fast.ended_at < 20_000 / 3
