"""A tuning belongs to a shape of model, a build and a device; a load takes it over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.cpu_cores import Cores
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.models.live_catalog import LiveCatalog
from core.settings import ROOT, load_settings
from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Switch, Tuning
from engine.tuning.store import write_tuning
from workers.launcher.servable_models import ServableModels

GIB = 1 << 30
DEMO = ROOT / "models" / "demo.gguf"
CPU = Device(name="cpu", kind=DeviceKind.CPU, card="Cores of a mill", total_bytes=8 * GIB)
CORES = Cores(cpus=((0,), (1,)))
TUNING = Tuning(
    slots=12,
    kv_layout=KvLayout.SPLIT,
    flash_attention=Switch.OFF,
    ubatch_tokens=1024,
    row_seconds=[(1, 0.01), (16, 0.011)],
    prompt_seconds=[(64, 0.02)],
    depth=64,
    seconds=1.0,
)


class Folder:
    """A models folder; each call of `plan` is a new launcher."""

    def __init__(self, path: Path) -> None:
        self.path = path / "models"
        self.path.mkdir()
        self.state = path / "state"

    def write(self, name: str, more: str = "", weights: Path = DEMO) -> None:
        text = f"name: {name}\ncontext_size: 1024\nparameters: {{model: {weights}}}\n{more}"
        (self.path / f"{name}.yaml").write_text(text)

    def plan(
        self,
        name: str = "m",
        *,
        device: Device = CPU,
        free: int = 4 * GIB,
        resident: tuple[str, ...] = (),
        **given: object,
    ) -> EngineConfig:
        settings = load_settings(
            models_dir=self.path, state_dir=self.state, device_memory="8GiB", database_url=None, redis_url=None, **given
        )
        models = ServableModels(settings, LiveCatalog(self.path), (), device, (device,), CORES)
        models.refresh()
        return models.plan(name, free, resident).config

    def measured(self, **given: object) -> EngineConfig:
        """The plan after an engine has measured its model."""
        path = self.plan(**given).tuning_path  # type: ignore[arg-type]
        write_tuning(Path(path), TUNING)
        return self.plan(**given)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write("m")
    return folder


def test_a_model_is_measured_once_and_served_with_the_result(folder: Folder) -> None:
    first = folder.plan()
    assert (first.slots, first.tuning) == (AUTO_SLOTS, None)
    assert Path(first.tuning_path).is_relative_to(folder.state)
    found = folder.measured()
    assert found.tuning == TUNING
    assert (found.flash_attention, found.ubatch_tokens, found.prefill_tokens) == (Switch.OFF, 1024, 1024)
    assert (found.slots, found.most_slots) == (AUTO_SLOTS, 12)


def test_models_of_one_shape_share_a_tuning(folder: Folder, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(DEMO.read_bytes())
    folder.write("copy", weights=copy)
    assert folder.plan("copy").tuning_path == folder.plan("m").tuning_path


@pytest.mark.parametrize(
    "more", ["slots: 4\n", "context_size: 512\n", "threads: 1\n", "cache_type_k: q8_0\n", "kv_layout: split\n"]
)
def test_what_a_file_sets_is_measured_apart_and_kept(folder: Folder, more: str) -> None:
    before = folder.plan().tuning_path
    folder.write("m", more if "context_size" not in more else "")
    if "context_size" in more:
        text = (folder.path / "m.yaml").read_text()
        (folder.path / "m.yaml").write_text(text.replace("context_size: 1024\n", more))
    assert folder.plan().tuning_path != before


def test_settings_of_the_file_win(folder: Folder) -> None:
    folder.write("m", "slots: 4\nflash_attention: on\nubatch_tokens: 64\n")
    found = folder.measured()
    assert (found.slots, found.flash_attention, found.ubatch_tokens) == (4, Switch.ON, 64)
    assert found.prefill_tokens == 1024


def test_another_device_is_measured_anew(folder: Folder) -> None:
    other = replace(CPU, card="Other cores")
    assert folder.plan().tuning_path != folder.plan(device=other).tuning_path


def test_nothing_is_measured_where_a_setting_says_so(folder: Folder) -> None:
    folder.measured()
    assert (folder.plan(tuning=False).tuning_path, folder.plan(tuning=False).tuning) == ("", None)


def test_slots_beyond_the_usual_leave_room_for_the_other_models_of_the_device(folder: Folder) -> None:
    assert folder.plan(free=GIB).most_slots == 32
    for name in "abcdefghijklmn":
        folder.write(name)
    assert folder.plan(free=GIB).most_slots == 8
    assert folder.plan(free=GIB, resident=tuple("abcdefghijklmn")).most_slots == 32
