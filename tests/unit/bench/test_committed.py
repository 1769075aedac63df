"""Comparison of ratios with those of earlier runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.committed import commit, committed_ratios, losses, machine
from bench.result import Result


def ratio(name: str, value: float, *, is_limit: bool = False) -> Result:
    return Result(name=name, value=value, unit="ratio", target=1, is_limit=is_limit)


def test_a_ratio_that_got_worse_is_named_with_both_numbers(tmp_path: Path) -> None:
    commit([ratio("documents, over llama-server (31 s)", 1.5), ratio("two engines", 1.1, is_limit=True)], tmp_path)
    before = committed_ratios(tmp_path)
    assert losses([ratio("documents, over llama-server (29 s)", 1.45)], before) == []
    worse = [ratio("documents, over llama-server (40 s)", 1.2), ratio("two engines", 1.3, is_limit=True)]
    assert losses(worse, before) == [
        "documents, over llama-server (40 s): 1.20, slower than the committed 1.50 by 20%.",
        "two engines: 1.30, slower than the committed 1.10 by 18%.",
    ]


def test_only_ratios_are_kept_and_rows_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    commit([ratio("a", 1.0), Result(name="first token", value=8, unit="ms", target=8, is_limit=True)], tmp_path)
    commit([ratio("b", 2.0)], tmp_path)
    assert committed_ratios(tmp_path) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("flags", "vectors"), [("fpu avx avx2 avx512f", " with AVX-512"), ("fpu avx avx2", " with AVX2"), ("fpu", "")]
)
def test_processors_of_one_name_differ_by_their_vector_instructions(flags: str, vectors: str, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n\n"
    info.write_text(core * 2)
    assert machine(info) == f"AMD EPYC{vectors}, {len(os.sched_getaffinity(0))} cores"
    assert "cores" in machine(tmp_path / "none")


def test_another_kind_of_machine_has_nothing_to_compare_with(tmp_path: Path) -> None:
    assert losses([ratio("a", 0.1)], committed_ratios(tmp_path)) == []
