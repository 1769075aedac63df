from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta

from core import ids


def test_ids_of_one_table_sort_by_age() -> None:
    first = ids.new_id(ids.BATCH)
    time.sleep(0.002)
    assert first < ids.new_id(ids.BATCH)


def test_the_first_id_of_a_moment_sorts_behind_all_that_were_made_before_it() -> None:
    before, moment = ids.new_id(ids.BATCH), datetime.now(UTC) + timedelta(milliseconds=1)
    first = ids.first_id(ids.BATCH, moment)
    assert before < first
    assert first < ids.first_id(ids.BATCH, moment + timedelta(milliseconds=1))
    assert len(first) == len(before)


def test_an_id_carries_128_random_bits_behind_its_prefix() -> None:
    made = {ids.new_id(ids.FILE) for _ in range(1000)}
    assert len(made) == 1000
    assert all(one.startswith("file-") and len(one) == len("file-") + 36 for one in made)


def test_an_id_is_its_time_and_random_bits_in_base32() -> None:
    ones, zeros = 0, ~0
    for _ in range(200):
        made = base64.b32hexdecode(ids.new_id("").upper() + "====")
        assert abs(int.from_bytes(made[:6]) - time.time() * 1000) < 60_000
        ones, zeros = ones | int.from_bytes(made[6:]), zeros & int.from_bytes(made[6:])
    assert (ones, zeros) == (2**128 - 1, 0)


def test_text_that_cannot_be_an_id_is_recognised() -> None:
    assert ids.is_id(ids.new_id(ids.CHAT))
    for text in ("", "a" * 81, "file/../../etc/passwd", "file-\0", "fïle", "a b", "x;y", "…"):
        assert not ids.is_id(text), text


def test_ids_that_were_made_here_are_told_from_other_texts() -> None:
    for prefix in (ids.FILE, ids.BATCH_LINE, ids.CHAT, ids.WEBHOOK):
        made = ids.new_id(prefix)
        assert ids.is_made_here(made)
        for text in (
            made[:-1],
            made + "0",
            made.upper(),
            f"{made}\n",
            f" {made}",
            made.removeprefix(prefix),
            "Ann Smith",
        ):
            assert not ids.is_made_here(text), text
