"""The ports of metrics in `serve`: one for each device, then the clerk's."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cli.stack.stack import Stack
from core.devices.inventory import TEST_VARIABLE
from core.errors import ConfigError
from core.settings import load_settings
from tests.support.devices import fake_devices

VARIABLE = "MILLRACE_METRICS_PORT"
DEVICES = ("cpu@0", "cpu@1")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(TEST_VARIABLE, fake_devices(tmp_path, cpus="0-1")[TEST_VARIABLE])
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    return folder


def _clerk_port(models: Path, port: int | None) -> str | None:
    settings = load_settings(state_dir=models.parent / "state", models_dir=models, port=0, metrics_port=port)
    stack = Stack(settings, devices=DEVICES)
    stack.services.stop()  # none runs: it ends the lock of the folder
    _, _, clerk = stack.children
    return clerk.environment.get(VARIABLE)


def test_the_clerk_has_the_port_after_those_of_all_devices(models: Path) -> None:
    for port in range(20_000, 60_000, 50):
        try:
            assert _clerk_port(models, port) == str(port + len(DEVICES))
            return
        except ConfigError:
            continue  # a program of this machine listens there
    raise AssertionError("no three ports in a row are free")


def test_free_ports_are_chosen_by_each_process(models: Path) -> None:
    assert _clerk_port(models, 0) == "0"
    assert _clerk_port(models, None) is None


def test_a_port_in_use_stops_the_start(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=VARIABLE):
            _clerk_port(models, taken.getsockname()[1])
