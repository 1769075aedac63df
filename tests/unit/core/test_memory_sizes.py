"""Sizes of memory, as people write them."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from core.memory_sizes import format_bytes, parse_bytes, parse_device_memory
from core.settings import load_settings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "number"),
    [("1048576", 1 << 20), ("900MiB", 900 << 20), ("8GB", 8 * GIB), ("1.5 g", 3 * GIB // 2), ("2TiB", 2048 * GIB)],
)
def test_a_size_has_a_unit_of_1024(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "8 apples", "-1GiB", "GiB", "1e9", "8GiBs"])
def test_another_text_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as 900MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (2048, "2 KiB"), (900 << 20, "900 MiB"), (3 * GIB // 2, "1.5 GiB")]
)
def test_a_size_is_shown_for_people(number: int, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("auto", {"": None}),
        ("8GiB", {"": 8 * GIB}),
        ("cuda:0=20GiB, cpu=auto", {"cuda:0": 20 * GIB, "cpu": None}),
        ("4GiB,cuda:1=20GiB", {"": 4 * GIB, "cuda:1": 20 * GIB}),
        ("cpu@0-3,8-11=4GiB,cpu@4=1GiB", {"cpu@0-3,8-11": 4 * GIB, "cpu@4": GIB}),
        ("", {}),
    ],
)
def test_a_budget_is_of_one_device_or_of_all_others(text: str, budgets: dict[str, int | None]) -> None:
    assert parse_device_memory(text) == budgets


@pytest.mark.parametrize("text", ["much", "cpu=", "=8GiB", "cpu=1GiB,cpu=2GiB", "1GiB,2GiB"])
def test_a_wrong_budget_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="device_memory"):
        load_settings(device_memory=text)
