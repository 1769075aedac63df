"""Simulate a fleet for a week and print what came of it: `python -m tools.fleet_simulation`.

The claim order, the residency policy and the rule for further engines are those of the product; devices, models and batches are
made up. Chats, crashes and the time of database calls are left out. A device computes lines at a speed that gives the fleet the
`--load` that was asked for.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Final

from rich.console import Console

from core.settings import load_settings
from tools.fleet_simulation.device import Model
from tools.fleet_simulation.report import print_report
from tools.fleet_simulation.simulation import Simulation
from tools.fleet_simulation.workload import DAY, Workload

_LOAD_SECONDS: Final = 20.0
_DEVICE_GIB: Final = 24


def main() -> None:
    """Read the options, simulate, print."""
    parser = argparse.ArgumentParser(prog="python -m tools.fleet_simulation", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000_000)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=200, help=f"of {_DEVICE_GIB} GiB each")
    parser.add_argument("--models", type=int, default=12, help="of 8 to 19 GiB")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--load", type=float, default=0.7, help="share of the devices' time that the lines need")
    parser.add_argument(
        "--replicas", type=int, help="most devices that load a model on demand; the default is no limit"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = load_settings()
    workload = Workload(
        tenants=options.tenants, models=options.models, lines=options.lines, days=options.days, seed=options.seed
    )
    line_seconds = options.load * options.devices * workload.sending_seconds / options.lines
    models = [
        Model(f"model-{number:02}", 8 + number * 5 % 12, line_seconds, _LOAD_SECONDS)
        for number in range(options.models)
    ]
    simulation = Simulation(models, options.devices, _DEVICE_GIB, settings, replicas=options.replicas)
    simulation.run(workload.arrivals(), options.days * DAY)
    console = Console()
    print_report(simulation, workload, settings, console)
    used = resource.getrusage(resource.RUSAGE_SELF)
    console.print(f"Simulated in {time.process_time():.0f} s of CPU, {used.ru_maxrss / 1024:.0f} MiB.")


if __name__ == "__main__":
    main()
