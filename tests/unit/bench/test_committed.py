"""Comparison of ratios with those of earlier runs."""

from __future__ import annotations

from pathlib import Path

from bench.committed import commit, committed_ratios, losses
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


def test_another_kind_of_machine_has_nothing_to_compare_with(tmp_path: Path) -> None:
    assert losses([ratio("a", 0.1)], committed_ratios(tmp_path)) == []
