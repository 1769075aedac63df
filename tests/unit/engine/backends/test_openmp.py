"""OpenMP: bounds of spinning and places of threads, which its runtime reads when llama.cpp is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest

from engine.backends.llama import spin_probe
from engine.backends.llama.openmp import BoundThread, Cores, bind_threads, bound_spinning, measure_round, openmp_warning
from engine.config import EngineConfig

LOAD = """
import os
from engine.config import EngineConfig
from engine.errors import ModelFailed
from engine.process.server import load_backend
cpus = os.sched_getaffinity(0)
cores = tuple((cpu,) for cpu in sorted(cpus))
try:
    load_backend(EngineConfig(model="m", endpoint="", model_path="missing.gguf", cores=cores))
except ModelFailed:
    print(os.environ['GOMP_SPINCOUNT'], os.environ['KMP_BLOCKTIME'], os.sched_getaffinity(0) == cpus)
"""


@pytest.mark.parametrize(
    ("nanoseconds", "rounds"), [(50.0, "10000"), (2.0, "250000"), (0.1, "300000"), (None, "20000")]
)
def test_threads_spin_for_the_same_time_on_every_processor(nanoseconds: float | None, rounds: str) -> None:
    environment: dict[str, str] = {}
    bound_spinning(environment, lambda: nanoseconds, is_bound_to_cores=True)
    assert environment == {"GOMP_SPINCOUNT": rounds, "KMP_BLOCKTIME": "1"}


def test_threads_that_may_share_a_core_spin_for_less_time() -> None:
    environment: dict[str, str] = {}
    bound_spinning(environment, lambda: 25.0, is_bound_to_cores=False)
    assert environment["GOMP_SPINCOUNT"] == "2000"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_operator_set_stays(name: str) -> None:
    environment = {name: "7"}
    bound_spinning(environment, is_bound_to_cores=True)
    assert environment == {name: "7"}


def test_threads_are_bound_to_all_cpus_of_their_cores() -> None:
    environment: dict[str, str] = {}
    cores = ((0, 4), (1, 5))
    assert bind_threads(environment, cores) == cores
    assert environment == {"OMP_PLACES": "{0,4},{1,5}", "OMP_PROC_BIND": "close"}


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_threads_stay_where_the_operator_puts_them(name: str) -> None:
    environment = {name: "7"}
    assert bind_threads(environment, ((0,), (1,))) == ()
    assert environment == {name: "7"}


def test_a_single_core_needs_no_binding() -> None:
    environment: dict[str, str] = {}
    assert bind_threads(environment, ((0, 1),)) == bind_threads(environment, ()) == ()
    assert not environment


def test_the_thread_that_computes_is_bound_and_no_other() -> None:
    cpus = os.sched_getaffinity(0)
    seen = []

    def compute(cores: Cores) -> None:
        BoundThread(cores).bind()
        seen.append(os.sched_getaffinity(0))

    for cores in (((min(cpus),), (max(cpus),)), (), ((4095,), (4094,))):  # the last ones were taken away
        thread = threading.Thread(target=compute, args=(cores,))
        thread.start()
        thread.join()
    assert seen == [{min(cpus)}, cpus, cpus]
    assert os.sched_getaffinity(0) == cpus


def test_a_build_without_openmp_is_reported_where_it_matters() -> None:
    on_cpu = EngineConfig(model="m", endpoint="")
    assert openmp_warning(on_cpu, b"CPU : AVX2 = 1 | OPENMP = 1 | ") is None
    assert "GGML_OPENMP=ON" in (openmp_warning(on_cpu, b"CPU : AVX2 = 1 | ") or "")
    assert openmp_warning(EngineConfig(model="m", endpoint="", gpu_layers=-1), b"CPU : AVX2 = 1 | ") is None


def test_a_round_of_spinning_is_measured_without_a_runtime_too(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_round()
    assert measured is None or 0 < measured < 1000
    monkeypatch.setattr(spin_probe, "__file__", "missing.py")
    assert measure_round() is None


def test_the_runtime_of_an_engine_has_read_the_bound() -> None:
    bounds = {"GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in bounds}
    process = [sys.executable, "-c", LOAD]
    printed = subprocess.run(
        process, env={**environment, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True
    )
    bound = re.search(r"GOMP_SPINCOUNT = '(\d+)'", printed.stderr)
    if bound is None:
        pytest.skip("llama.cpp is built without GNU's OpenMP")
    assert printed.stdout == f"{bound[1]} 1 True\n"
    assert int(bound[1]) < 300_000 or (measure_round() or 0) < 2
