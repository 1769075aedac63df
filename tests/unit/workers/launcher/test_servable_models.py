"""Servable models: what a launcher may load, and the memory it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from core.cpu_cores import Cores
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.errors import ConfigError
from core.models.gguf.gguf_header import GgufHeader
from core.models.live_catalog import LiveCatalog
from core.settings import ROOT, Settings, load_settings
from engine.config import AUTO_SLOTS
from workers.launcher.servable_models import ServableModels

MIB = 1 << 20
CPU = Device(name="cpu", kind=DeviceKind.CPU, total_bytes=1000 * MIB)
CORE = Cores(cpus=((0,),))


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

    def models(self, *names: str, devices: Sequence[Device] = (CPU,), cores: Cores = CORE) -> ServableModels:
        """What the launcher of the first device may load."""
        self._catalog = LiveCatalog(self.path)
        models = ServableModels(self.settings, self._catalog, names, devices[0], devices, cores)
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


def test_servers_do_not_hold_up_the_start_of_a_worker(folder: Folder) -> None:
    folder.write("a")
    (folder.path / "far.yaml").write_text("name: far\nbackend: openai\nbase_url: http://127.0.0.1:9\n")
    started = "backend: openai\ncommand: serve {port}\ndevices: [cpu]\nmemory_bytes: 10MiB\n"
    (folder.path / "started.yaml").write_text(f"name: started\n{started}")
    models = folder.models()
    assert (models.replicas("far"), models.replicas("started")) == (1, None)
    assert models.begin_eager() == ["a"]
    assert (models.num_bytes("far"), models.num_bytes("started")) == (0, 10 * MIB)


@pytest.mark.parametrize("free", [1000, 1500])
def test_automatic_slots_on_a_gpu_leave_room_for_the_weights(
    folder: Folder, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GgufHeader, "tensor_bytes", property(lambda _: 500 * MIB))
    gpu = Device(name="cuda:0", kind=DeviceKind.CUDA, total_bytes=2000 * MIB)
    model = f"name: a\nparameters: {{model: {ROOT / 'models' / 'demo.gguf'}}}\nslots: auto\ncontext_size: 32768\n"
    (folder.path / "a.yaml").write_text(model)
    plan = folder.models(devices=[gpu]).plan("a", free * MIB)
    assert plan.config.slots == AUTO_SLOTS
    assert 500 * MIB < plan.num_bytes <= free * MIB


def test_devices_on_the_cpu_divide_its_quota_by_their_cpus(folder: Folder) -> None:
    folder.write("a")
    large = Device(name="cpu@0-5", kind=DeviceKind.CPU, cpus=tuple(range(6)))
    small = Device(name="cpu@6-7", kind=DeviceKind.CPU, cpus=(6, 7))
    gpu = Device(name="cuda:0", kind=DeviceKind.CUDA)

    def threads(*devices: Device, quota: float | None = 4.0) -> int:
        cores = Cores(cpus=tuple((cpu,) for cpu in devices[0].cpus or range(8)), quota=quota)
        return folder.models(devices=devices, cores=cores).plan("a", 0).config.threads

    assert threads(large) == 4
    assert (threads(large, small), threads(small, large)) == (3, 1)
    assert (threads(large, small, gpu), threads(gpu, large, small)) == (3, 4), "on a GPU they mostly wait"
    assert (threads(large, small, quota=None), threads(small, large, quota=None)) == (6, 2)
