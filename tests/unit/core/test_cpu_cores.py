"""Usable cores: affinity, hyper-threads and quotas, read from trees of files as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.cpu_cores import usable_cores

MEMBERSHIPS_V1 = "5:cpuset:/\n4:cpu,cpuacct:/system.slice/app.service\n3:cpuacct:/other\n1:name=systemd:/\n0::/\n"


class Machine:
    """A machine of files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc = folder / "sys", folder / "proc"
        self.memberships("")

    def siblings(self, *cores: str) -> None:
        """Cores of hyper-threads: "0,4" or "0-1"."""
        for core in cores:
            first, dash, last = core.partition("-")
            numbers = range(int(first), int(last) + 1) if dash else map(int, core.split(","))
            for cpu in numbers:
                write(self.sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{core}\n")

    def memberships(self, text: str) -> None:
        write(self.proc / "cgroup", text)

    def cgroup(self, path: str, text: str) -> None:
        write(self.sys / "fs/cgroup" / path, text)

    def threads(self, *cpus: int) -> int:
        return usable_cores(frozenset(cpus), self.sys, self.proc).threads

    def quota(self) -> float | None:
        return usable_cores(frozenset(range(8)), self.sys, self.proc).quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_hyper_threads_of_a_core_count_once(machine: Machine) -> None:
    machine.siblings("0,4", "1,5", "2,6", "3,7")
    assert machine.threads(*range(8)) == 4
    machine.siblings("0-1", "2-3", "4-5", "6-7")
    assert machine.threads(*range(8)) == 4


def test_only_cores_of_the_affinity_count(machine: Machine) -> None:
    machine.siblings("0,4", "1,5", "2,6", "3,7")
    assert machine.threads(0, 4) == 1
    assert machine.threads(0, 5) == 2
    assert machine.threads(6, 7) == 2
    assert usable_cores(frozenset({0, 3, 4}), machine.sys, machine.proc).cpus == ((0, 4), (3,))


def test_without_a_topology_each_cpu_is_a_core(machine: Machine) -> None:
    assert machine.threads(0, 1, 2) == 3


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("150000 100000", 2), ("140000 100000", 1), ("10000 100000", 1), ("250000 100000", 3), ("900000 100000", 8)],
)
def test_a_quota_is_rounded_to_whole_threads_and_never_to_none(machine: Machine, limit: str, threads: int) -> None:
    machine.memberships("0::/\n")
    machine.cgroup("cpu.max", limit)
    assert machine.threads(*range(8)) == threads


def test_the_smallest_quota_from_the_cgroup_up_to_the_root_counts(machine: Machine) -> None:
    machine.memberships("0::/user.slice/app.service\n")
    machine.cgroup("user.slice/app.service/cpu.max", "400000 100000")
    machine.cgroup("user.slice/cpu.max", "300000 100000")
    assert machine.quota() == 3
    machine.cgroup("user.slice/app.service/cpu.max", "50000 20000")
    assert machine.quota() == 2.5
    machine.cgroup("user.slice/app.service/cpu.max", "max 100000")
    machine.cgroup("user.slice/cpu.max", "max 100000")
    assert machine.quota() is None


def test_quotas_of_the_first_version_count(machine: Machine) -> None:
    machine.memberships(MEMBERSHIPS_V1)
    machine.cgroup("cpu,cpuacct/system.slice/app.service/cpu.cfs_quota_us", "150000\n")
    machine.cgroup("cpu,cpuacct/system.slice/app.service/cpu.cfs_period_us", "100000\n")
    assert machine.quota() == 1.5
    machine.cgroup("cpu,cpuacct/system.slice/app.service/cpu.cfs_quota_us", "-1\n")
    assert machine.quota() is None


def test_a_container_that_sees_only_the_root_of_its_path_finds_its_quota(machine: Machine) -> None:
    machine.memberships("4:cpu,cpuacct:/docker/0123abc\n0::/docker/0123abc\n")
    machine.cgroup("cpu/cpu.cfs_quota_us", "200000\n")
    machine.cgroup("cpu/cpu.cfs_period_us", "100000\n")
    assert machine.quota() == 2
    machine.cgroup("unified/cpu.max", "100000 100000\n")
    assert machine.quota() == 1


@pytest.mark.parametrize("text", ["", "garbage", "max", "0 100000", "100000 0"])
def test_a_limit_that_cannot_be_read_is_none(machine: Machine, text: str) -> None:
    machine.memberships("0::/\n")
    machine.cgroup("cpu.max", text)
    assert machine.quota() is None


def test_the_reason_names_cores_and_quota_in_one_line(machine: Machine) -> None:
    machine.siblings("0-1", "2-3")
    machine.memberships("0::/\n")
    machine.cgroup("cpu.max", "150000 100000")
    reason = usable_cores(frozenset(range(4)), machine.sys, machine.proc).reason
    assert reason == "2 per model: this process may use 4 CPUs on 2 cores, with a quota of 1.5 CPUs"


def test_this_machine_has_a_core() -> None:
    cores = usable_cores()
    cpus = [cpu for core in cores.cpus for cpu in core]
    assert sorted(cpus) == sorted(os.sched_getaffinity(0))
    assert 1 <= cores.threads <= len(cpus)
