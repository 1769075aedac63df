"""Maps that spill to disk."""

from __future__ import annotations

import pytest

from mapping.disk_map import DiskMap


@pytest.mark.parametrize("max_memory", [0, 1000, 1 << 20])
def test_a_map_is_the_same_in_memory_and_on_disk(max_memory):
    entries = DiskMap(max_memory)
    for number in range(100):
        assert entries.add(f"seen {number}".encode())
        entries.put(f"key {number % 10}".encode(), b"%d" % number)
    assert not entries.add(b"seen 0")
    assert not entries.add(b"seen 99")
    assert entries.add(b"line", b"1")
    assert not entries.add(b"line", b"2")
    assert entries.get(b"line") == b"1"
    assert [entries.get(f"key {n}".encode()) for n in range(10)] == [b"%d" % n for n in range(90, 100)]
    assert entries.get(b"seen 5") == b""
    assert entries.get(b"none") is None
    entries.close()
