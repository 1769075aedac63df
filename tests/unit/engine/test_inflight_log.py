"""The ledger: what is read after a death is what was noted last before it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.process.inflight_log import InflightLog, Section, read_inflight_log
from tests.support.engine import Bench, chat

CRASHES_IN_ITS_SECOND_NOTE = """
import os, signal, sys
from pathlib import Path
from engine.process.inflight_log import InflightLog, Section
log = InflightLog(Path(sys.argv[1]), "boot")
log.record(Section.STEP, [("c", "one"), ("c", "two")])
log.record(Section.INPUT, [("d", "three")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_note_outlives_the_process_that_made_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES_IN_ITS_SECOND_NOTE, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_inflight_log(tmp_path, "boot") == {("c", "one"), ("c", "two"), ("d", "three")}


def test_a_full_disk_leaves_nothing_known_and_never_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory mapped from a file without blocks is a SIGBUS when it is touched and there is no room."""
    InflightLog(tmp_path, "boot")
    status = (tmp_path / "inflight-boot").stat()
    assert status.st_blocks * 512 >= status.st_size > 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    log = InflightLog(tmp_path, "another")
    log.record(Section.STEP, [("c", "one")])
    assert read_inflight_log(tmp_path, "another") is None


def test_a_page_says_what_was_noted_last_and_the_others_keep_theirs(tmp_path: Path) -> None:
    log = InflightLog(tmp_path, "boot")
    assert read_inflight_log(tmp_path, "boot") == set()
    log.record(Section.COMPILE, [("c", "slow")])
    for name in ("one", "two", "three"):
        log.record(Section.STEP, [("c", name)])
        assert read_inflight_log(tmp_path, "boot") == {("c", name), ("c", "slow")}
    log.record(Section.STEP, [])
    assert read_inflight_log(tmp_path, "boot") == {("c", "slow")}


def test_nothing_is_known_of_another_boot_or_of_more_requests_than_a_page_holds(tmp_path: Path) -> None:
    log = InflightLog(tmp_path, "boot")
    log.record(Section.STEP, [("c", "x" * 100_000)])
    assert read_inflight_log(tmp_path, "boot") is None
    assert read_inflight_log(tmp_path, "other") is None


def test_ledgers_of_earlier_boots_are_kept_for_a_while_and_no_longer(tmp_path: Path) -> None:
    for number in range(9):
        InflightLog(tmp_path, f"boot-{number}")
        os.utime(tmp_path / f"inflight-boot-{number}", (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"inflight-boot-{number}" for number in range(4, 9)]


def noting_bench(slots: int = 4) -> tuple[Bench, list[list[str]]]:
    """An engine stepped by hand, and the ids in each of its notes."""
    bench, noted = Bench(slots=slots), []
    bench.engine._record_inflight = lambda keys: noted.append([request_id for _, request_id in keys])
    return bench, noted


def test_who_waits_for_a_slot_is_not_in_the_ledger() -> None:
    bench, noted = noting_bench(slots=2)
    for name in "abc":
        bench.add(chat(f"question {name}", name))
    for _ in range(4):
        bench.engine.run_once()
    assert noted[-1] == ["a", "b"]
    assert set(bench.run()) == {"a", "b", "c"}
    assert noted[-1] == [], "nobody is left"


def test_a_request_that_must_be_alone_shares_no_step_and_all_go_on_meanwhile() -> None:
    bench, noted = noting_bench()
    bench.add(chat("one", "a", max_tokens=20))
    bench.add(chat("suspect", "s", exclusive=True, max_tokens=20))
    bench.add(chat("two", "b", max_tokens=20))
    plain = {"a": Bench().ask("one", max_tokens=20).text, "s": Bench().ask("suspect", max_tokens=20).text}
    finished = bench.run()
    assert {key: finished[key].text for key in plain} == plain
    with_suspect = [set(note) for note in noted if "s" in note]
    assert with_suspect[1:] == [{"s"}] * len(with_suspect[1:]), "after it got its slot"
    halfway = noted[: len(noted) // 2]
    assert {name for note in halfway for name in note} == {"a", "s", "b"}, "they take turns"


def test_two_that_must_be_alone_run_one_after_the_other() -> None:
    bench, noted = noting_bench()
    for name in "st":
        bench.add(chat(f"suspect {name}", name, exclusive=True, max_tokens=5))
    assert set(bench.run()) == {"s", "t"}
    assert noted[-3:] == [["s"], ["t"], []], "the second takes no step before the first has ended"
