"""Servable models: what a launcher may load, and the memory it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.cpu_cores import Cores
from core.devices.budget import UNLIMITED, device_budget
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.errors import ConfigError
from core.models.live_catalog import LiveCatalog
from core.settings import Settings, load_settings
from workers.launcher.servable_models import ServableModels

MIB = 1 << 20
CPU = Device(name="cpu", kind=DeviceKind.CPU, total_bytes=1000 * MIB)


class Folder:
    def __init__(self, path: Path, budget: str = "250MiB") -> None:
        self.path = path / "models"
        self.path.mkdir()
        self.settings: Settings = load_settings(
            models_dir=self.path, state_dir=path / "state", device_memory=budget, database_url=None, redis_url=None
        )
        self._catalog: LiveCatalog | None = None

    def write(self, name: str, more: str = "memory_bytes: 100MiB\n") -> None:
        (self.path / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\n{more}")

    def models(self, *names: str) -> ServableModels:
        self._catalog = LiveCatalog(self.path)
        models = ServableModels(self.settings, self._catalog, names, CPU, [CPU], Cores(cpus=((0,),)))
        assert models.refresh()
        return models

    def change(self, models: ServableModels) -> set[str]:
        """Take the folder over, and return the names that have changed."""
        assert self._catalog is not None
        self._catalog.refresh()
        models.files_changed()
        assert models.refresh()
        return models.changed


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("setting", "device", "budget"),
    [
        ("auto", CPU, 800 * MIB),
        ("auto", Device(name="cuda:0", kind=DeviceKind.CUDA, total_bytes=2000, free_bytes=1000), 900),
        ("auto", Device(name="cuda:0", kind=DeviceKind.CUDA), UNLIMITED),
        ("100MiB", CPU, 100 * MIB),
        ("cpu=5MiB", CPU, 5 * MIB),
        ("cuda:0=5MiB", CPU, 800 * MIB),
        ("3MiB,cpu=5MiB", Device(name="cpu@0-3", kind=DeviceKind.CPU), 5 * MIB),
        ("cpu=5MiB,cpu@0-3=7MiB", Device(name="cpu@0-3", kind=DeviceKind.CPU), 7 * MIB),
        ("1MiB,cpu=5MiB", CPU, 5 * MIB),
    ],
)
def test_the_budget_is_the_setting_or_a_share_of_the_memory(setting: str, device: Device, budget: int) -> None:
    assert device_budget(load_settings(device_memory=setting), device) == budget


def test_the_models_of_the_start_are_pinned_ones_and_then_eager_ones_by_name(folder: Folder) -> None:
    folder.write("a")
    folder.write("b", "load: lazy\n")
    folder.write("c", "memory_bytes: 200MiB\n")
    folder.write("d", "memory_bytes: 10MiB\n")
    folder.write("p", "memory_bytes: 100MiB\npinned: true\n")
    assert folder.models().begin_eager() == ["p", "a", "d"]
    assert folder.models("c", "d").begin_eager() == ["c", "d"]


def test_pinned_models_that_do_not_fit_are_an_error_with_the_numbers(folder: Folder) -> None:
    for name in "abc":
        folder.write(name, "memory_bytes: 100MiB\npinned: true\n")
    with pytest.raises(ConfigError, match=r"need 300 MiB, and cpu has 250 MiB for models\. Remove `pinned` from c"):
        folder.models().begin_eager()


def test_a_model_that_never_fits_is_refused_with_the_numbers(folder: Folder) -> None:
    folder.write("a", "memory_bytes: 300MiB\n")
    folder.write("b")
    assert folder.models().room_problem("a") == "it needs 300 MiB of memory, and cpu has 250 MiB for models"
    assert folder.models().room_problem("b") == ""
    folder.write("p", "memory_bytes: 200MiB\npinned: true\n")
    problem = folder.models().room_problem("b")
    assert problem == "it needs 100 MiB of memory, and cpu has 50 MiB for models beside its pinned models"


def test_only_keys_of_the_engine_make_another_load(folder: Folder) -> None:
    for name in "abc":
        folder.write(name)
    models = folder.models()
    plans = {name: models.plan(name, 250 * MIB) for name in models.names()}
    assert plans["a"].num_bytes == 100 * MIB
    folder.write("a", "memory_bytes: 100MiB\nload: lazy\nkeep_alive_seconds: 5\naliases: [x]\n")
    folder.write("b", "memory_bytes: 100MiB\nslots: 2\n")
    folder.write("d")
    (folder.path / "c.yaml").unlink()
    assert folder.change(models) == {"b", "d"}
    assert models.names() == {"a", "b", "d"}
    assert (models.is_same(plans["a"]), models.is_same(plans["b"])) == (True, False)
    assert not models.models()["a"].is_eager
    assert not models.refresh(), "nothing has changed since"


def test_a_model_with_a_number_of_replicas_is_not_loaded_before_others_are_asked(folder: Folder) -> None:
    folder.write("a", "replicas: 1\n")
    folder.write("b")
    models = folder.models()
    assert (models.replicas("a"), models.replicas("b")) == (1, None)
    assert models.begin_eager() == ["b"]
