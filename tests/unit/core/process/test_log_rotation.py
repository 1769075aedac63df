"""Rotation of logs that a child has open."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.process.log_rotation import LogRotation


def test_a_large_log_is_rotated_while_its_writer_has_it_open(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    rotation = LogRotation(log, 100)
    assert not rotation.rotate_if_large(), "it does not exist yet"
    with log.open("ab", buffering=0) as writer:
        for number in range(6):
            writer.write(b"%d" % number * 60 + b"\n")
            rotation.rotate_if_large()
        writer.write(b"last\n")
    texts = {path.name: path.read_text() for path in sorted(tmp_path.iterdir())}
    lines = {name: [line[0] for line in text.splitlines()] for name, text in texts.items()}
    assert lines == {"api.log": ["l"], "api.log.1": ["4", "5"], "api.log.2": ["2", "3"], "api.log.3": ["0", "1"]}
    with log.open("ab") as writer:
        writer.write(b"x" * 100)
    assert rotation.rotate_if_large()
    assert (tmp_path / "api.log.3").read_text()[0] == "2", "the oldest is gone"
    assert log.read_bytes() == b""


def test_a_rotation_that_fails_keeps_the_log_and_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(b"x" * 100)
    rotation = LogRotation(log, 100)
    attempts = []

    def full_disk(*_: object) -> None:
        attempts.append(1)
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("core.process.log_rotation.shutil.copyfileobj", full_disk)
        for _ in range(5):
            assert not rotation.rotate_if_large()
    assert len(attempts) == 1, "not at each look"
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]
    assert log.stat().st_size == 100
    with log.open("ab") as writer:
        writer.write(b"x" * 100)
    assert rotation.rotate_if_large()
    assert (tmp_path / "api.log.1").stat().st_size == 200


def test_zero_rotates_never(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(b"x" * 100)
    assert not LogRotation(log, 0).rotate_if_large()
