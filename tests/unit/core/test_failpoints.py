"""Failpoints: ways to arm them, the pass on which they act, and that they are inert by default."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.failpoints import (
    BadFailpoint,
    FailpointRaised,
    Failpoints,
    Fault,
    Point,
    failpoint,
    parse_fault,
    parse_faults,
)
from core.settings import ROOT
from tests.support.stack import wait_for

POINT = Point.PREPARE_COMMITTED
ROOMS = ("api", "cli", "core", "db", "engine", "workers")


def passes(environment: dict[str, str], number: int = 3) -> list[bool]:
    """Return for each of `count` passes whether it raised."""
    points = Failpoints(environment)
    return [raises(points) for _ in range(number)]


def raises(points: Failpoints) -> bool:
    try:
        points.reach(POINT)
    except FailpointRaised:
        return True
    return False


def test_a_point_that_is_not_armed_is_inert() -> None:
    failpoint(POINT)
    assert Failpoints({}).is_inert
    assert passes({}) == [False, False, False]


def test_a_process_acts_once_on_its_first_pass_or_on_the_one_that_is_set() -> None:
    assert passes({"MILLRACE_FAILPOINT": f"{POINT}:raise"}) == [True, False, False]
    assert passes({"MILLRACE_FAILPOINT": f"{POINT}:raise:hit=2"}) == [False, True, False]


def test_several_points_are_armed_at_once_and_others_stay_inert() -> None:
    faults = parse_faults("prepare.committed:kill:hit=3, shards.written:sleep=0.5,engine.step:raise")
    assert faults == {
        Point.PREPARE_COMMITTED: Fault("kill", hit=3),
        Point.SHARD_WRITTEN: Fault("sleep", 0.5),
        Point.ENGINE_STEP: Fault("raise"),
    }
    assert passes({"MILLRACE_FAILPOINT": "shards.written:raise"}) == [False, False, False]


@pytest.mark.parametrize(
    "text", ["nowhere:kill", "prepare.committed", "prepare.committed:die", "prepare.committed:kill:hit=0",
             "prepare.committed:sleep=long", "prepare.committed:kill:raise", "prepare.committed:kill:hit=x"]
)  # fmt: skip
def test_what_is_no_point_or_no_action_is_an_error(text: str) -> None:
    with pytest.raises(BadFailpoint):
        parse_faults(text)


def test_a_process_with_a_bad_variable_does_not_start() -> None:
    done = run("pass", MILLRACE_FAILPOINT="nowhere:kill")
    assert done.returncode == 1
    assert "there is no point 'nowhere'" in done.stderr


def test_of_all_processes_that_share_a_folder_one_acts(tmp_path: Path) -> None:
    environment = {"MILLRACE_FAILPOINT": f"{POINT}:raise", "MILLRACE_FAILPOINT_DIR": str(tmp_path)}
    assert passes(environment) == [True, False, False]
    assert passes(environment) == [False, False, False]
    assert [path.name for path in tmp_path.iterdir()] == ["prepare.committed.hit"]


def test_a_file_arms_a_point_in_a_process_that_runs_already_and_is_used_up(tmp_path: Path) -> None:
    points = Failpoints({"MILLRACE_FAILPOINT_DIR": str(tmp_path)})
    assert not raises(points)
    for _ in range(2):
        (tmp_path / POINT).write_text("raise:hit=2")
        assert [raises(points) for _ in range(3)] == [False, True, False]
        assert not (tmp_path / POINT).exists()
        (tmp_path / f"{POINT}.hit").unlink()


def test_a_process_that_was_too_late_for_one_arming_acts_on_the_next(tmp_path: Path) -> None:
    first, second = (Failpoints({"MILLRACE_FAILPOINT_DIR": str(tmp_path)}) for _ in range(2))
    for one, other in ((first, second), (second, first)):
        (tmp_path / POINT).write_text("raise")
        assert raises(one)
        assert not raises(other)
        (tmp_path / f"{POINT}.hit").unlink()


def test_a_kill_cannot_be_caught() -> None:
    code = "try:\n failpoint(Point.PREPARE_COMMITTED)\nfinally:\n print('lived on')"
    done = run(code, MILLRACE_FAILPOINT=f"{POINT}:kill")
    assert done.returncode == -signal.SIGKILL
    assert not done.stdout


def test_a_sleep_goes_on_afterwards() -> None:
    assert parse_fault("sleep=0.01") == Fault("sleep", 0.01)
    done = run("failpoint(Point.PREPARE_COMMITTED); print('went on')", MILLRACE_FAILPOINT=f"{POINT}:sleep=0.01")
    assert done.stdout == "went on\n"


def test_a_hold_goes_on_when_its_proof_is_deleted(tmp_path: Path) -> None:
    points = Failpoints({"MILLRACE_FAILPOINT": f"{POINT}:hold", "MILLRACE_FAILPOINT_DIR": str(tmp_path)})
    proof, thread = tmp_path / f"{POINT}.hit", threading.Thread(target=points.reach, args=(POINT,))
    thread.start()
    wait_for(proof.exists, "it is held")
    assert thread.is_alive()
    proof.unlink()
    thread.join(10)
    assert not thread.is_alive()


def test_every_declared_point_is_passed_somewhere_and_every_pass_is_of_a_declared_point() -> None:
    passed = {
        node.attr
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Point"
    }
    assert passed == {point.name for point in Point}


def test_the_module_imports_no_other_module_of_the_project() -> None:
    done = run("import sys; print(*(name for name in sys.modules if name.partition('.')[0] in sys.argv[1:]))", *ROOMS)
    assert done.stdout.split() == ["core", "core.failpoints"]


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with failpoints."""
    command = [sys.executable, "-c", f"from core.failpoints import Point, failpoint\n{code}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
