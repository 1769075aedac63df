"""In-flight log: after a crash, the last record can be read."""

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

CRASHES_AFTER_TWO_RECORDS = """
import os, signal, sys
from pathlib import Path
from engine.process.inflight_log import InflightLog, Section
log = InflightLog(Path(sys.argv[1]), "boot")
log.record(Section.STEP, [("c", "one"), ("c", "two")])
log.record(Section.INPUT, [("d", "three")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_survives_the_process_that_wrote_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES_AFTER_TWO_RECORDS, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_inflight_log(tmp_path, "boot") == {("c", "one"), ("c", "two"), ("d", "three")}


def test_a_full_disk_makes_the_log_unreadable_and_never_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to mapped memory without allocated blocks ends the process with SIGBUS if the disk is full."""
    InflightLog(tmp_path, "boot")
    status = (tmp_path / "inflight-boot").stat()
    assert status.st_blocks * 512 >= status.st_size > 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    log = InflightLog(tmp_path, "another")
    log.record(Section.STEP, [("c", "one")])
    assert read_inflight_log(tmp_path, "another") is None


def test_a_section_holds_its_last_record_and_the_others_keep_theirs(tmp_path: Path) -> None:
    log = InflightLog(tmp_path, "boot")
    assert read_inflight_log(tmp_path, "boot") == set()
    log.record(Section.COMPILE, [("c", "slow")])
    for name in ("one", "two", "three"):
        log.record(Section.STEP, [("c", name)])
        assert read_inflight_log(tmp_path, "boot") == {("c", name), ("c", "slow")}
    log.record(Section.STEP, [])
    assert read_inflight_log(tmp_path, "boot") == {("c", "slow")}


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_log_with_too_many_requests_is_unreadable_in_both_copies(tmp_path: Path, num_before: int) -> None:
    log = InflightLog(tmp_path, "boot")
    for number in range(num_before):
        log.record(Section.STEP, [("c", str(number))])
    log.record(Section.STEP, [("c", "x" * 100_000)])
    assert read_inflight_log(tmp_path, "boot") is None
    log.record(Section.STEP, [("c", "one")])
    assert read_inflight_log(tmp_path, "boot") == {("c", "one")}


def test_the_log_of_another_boot_is_unreadable(tmp_path: Path) -> None:
    InflightLog(tmp_path, "boot")
    assert read_inflight_log(tmp_path, "other") is None


def test_only_the_latest_logs_of_earlier_boots_are_kept(tmp_path: Path) -> None:
    for number in range(9):
        InflightLog(tmp_path, f"boot-{number}")
        os.utime(tmp_path / f"inflight-boot-{number}", (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"inflight-boot-{number}" for number in range(4, 9)]


def recording_bench(slots: int = 4) -> tuple[Bench, list[list[str]]]:
    """An engine stepped by hand, and the request ids of each record."""
    bench, records = Bench(slots=slots), []
    bench.engine._record_inflight = lambda keys: records.append([request_id for _, request_id in keys])
    return bench, records


def test_a_request_that_waits_for_a_slot_is_not_in_the_log() -> None:
    bench, records = recording_bench(slots=2)
    for name in "abc":
        bench.add(chat(f"question {name}", name))
    for _ in range(4):
        bench.engine.run_once()
    assert records[-1] == ["a", "b"]
    assert set(bench.run()) == {"a", "b", "c"}
    assert records[-1] == [], "no request is left"


def test_an_exclusive_request_shares_no_step_while_all_go_on() -> None:
    bench, records = recording_bench()
    bench.add(chat("one", "a", max_tokens=20))
    bench.add(chat("suspect", "s", exclusive=True, max_tokens=20))
    bench.add(chat("two", "b", max_tokens=20))
    plain = {"a": Bench().ask("one", max_tokens=20).text, "s": Bench().ask("suspect", max_tokens=20).text}
    finished = bench.run()
    assert {key: finished[key].text for key in plain} == plain
    with_suspect = [set(record) for record in records if "s" in record]
    assert with_suspect[1:] == [{"s"}] * len(with_suspect[1:]), "after it got its slot"
    halfway = records[: len(records) // 2]
    assert {name for record in halfway for name in record} == {"a", "s", "b"}, "they take turns"


def test_two_exclusive_requests_run_one_after_the_other() -> None:
    bench, records = recording_bench()
    for name in "st":
        bench.add(chat(f"suspect {name}", name, exclusive=True, max_tokens=5))
    assert set(bench.run()) == {"s", "t"}
    assert records[-3:] == [["s"], ["t"], []], "the second takes no step before the first has ended"
