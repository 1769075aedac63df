"""Names of devices as users write them."""

from __future__ import annotations

import pytest

from core.devices.names import format_cpus, parse_cpus, parse_devices
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["cpu"], ["cpu"]),
        (["cuda:0,cuda:2"], ["cuda:0", "cuda:2"]),
        (["cuda:0", "cpu, hip:1"], ["cuda:0", "cpu", "hip:1"]),
        (["cpu@0-3,8-11,cuda:0"], ["cpu@0-3,8-11", "cuda:0"]),
        (["cpu@0-3,4", "cpu@7,5,6"], ["cpu@0-4", "cpu@5-7"]),
        (["cpu@node0,cpu@node1"], ["cpu@node0", "cpu@node1"]),
        (["vulkan:0@node1"], ["vulkan:0@node1"]),
    ],
)
def test_names_are_separated_by_commas_and_cpus_are_written_in_one_way(texts: list[str], names: list[str]) -> None:
    assert [str(name) for name in parse_devices(texts)] == names


@pytest.mark.parametrize(
    "text",
    [
        "gpu",
        "cuda:",
        "cuda:a",
        "cpu:0",
        "",
        "cpu,",
        "0",
        "cpu@",
        "CPU",
        "cuda:-1",
        "cuda:٣",
        "cpu, ,",
        "cpu@0,,1",
    ],
)
def test_an_unknown_device_is_named_with_those_that_are_known(text: str) -> None:
    with pytest.raises(ConfigError, match="use cpu, cuda:0"):
        parse_devices([text])


@pytest.mark.parametrize("text", ["cpu@3-1", "cpu@a", "cpu@0-", "cpu@-1", "cpu@node", "cpu@0 1", "cpu@node0,1"])
def test_a_wrong_list_of_cpus_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a list of CPUs: write 0-15"):
        parse_devices([text])


def test_lists_of_cpus_have_the_form_of_the_kernel() -> None:
    assert parse_cpus("0-2,8, 5") == (0, 1, 2, 5, 8)
    assert format_cpus((0, 1, 2, 5, 8)) == "0-2,5,8"
