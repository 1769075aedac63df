"""Servable models: the model files that a launcher follows, and the memory that each of them needs on its device."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from core.cpu_cores import Cores
from core.devices.budget import device_budget
from core.devices.environment import device_environment
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.errors import ConfigError
from core.memory_sizes import format_bytes
from core.models.live_catalog import LiveCatalog
from core.models.model_files import ModelConfig
from core.readiness import too_large
from core.settings import Settings
from engine.config import AUTO_SLOTS, EngineConfig
from workers.launcher.device_memory import model_bytes, model_slots
from workers.launcher.engines.engine_config import engine_config
from workers.launcher.engines.engine_process import LoadPlan
from workers.launcher.tunings import with_tuning
from workers.residency.placement import engine_devices, is_guest, owns, part_on, quota_part
from workers.residency.types import ServableModel, room_for

_USUAL_SLOTS: Final = 8  # a model takes memory for more only where all others of its device have room beside it
_OF_RESIDENCY: Final = {
    "aliases": (),
    "fallback": (),
    "weight": None,
    "load": "eager",
    "keep_alive_seconds": None,
    "pinned": False,
    "memory_bytes": None,
}


class ServableModels:
    """The models of one launcher: those with these names or aliases, or all where there are none.

    Only the launcher's main thread uses it, apart from `files_changed`.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: LiveCatalog,
        names: Collection[str],
        device: Device,
        deployment: Sequence[Device],
        cores: Cores,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._names = names or None
        self._device = device
        self._deployment = deployment
        self._cores = cores.part(quota_part(device, deployment))
        self.device_bytes = device_budget(settings, device)
        self.budget = self.device_bytes
        self._is_due = threading.Event()
        self._is_due.set()
        self._configs: dict[str, ModelConfig] = {}
        self._stamps: dict[str, str] = {}
        self._models: dict[str, ServableModel] = {}
        self._pins: tuple[str, ...] = ()
        self.pins_without_room: set[str] = (
            set()
        )  # pins of admins that do not fit beside the models that are pinned already
        self.changed: set[str] = set()  # names that are new, or whose files were changed, at the last refresh

    def files_changed(self) -> None:
        """Look at the catalog with the next `refresh`. Callable from any thread."""
        self._is_due.set()

    def pin(self, names: tuple[str, ...]) -> None:
        """Take over the models that admins have pinned, the oldest pin first, with the next `refresh`."""
        if names != self._pins:
            self._pins = names
            self._is_due.set()

    def refresh(self) -> bool:
        """Take over the catalog's models; return whether anything may have changed."""
        if not self._is_due.is_set():
            return False
        self._is_due.clear()
        old, old_stamps = self._configs, self._stamps
        listed = self._catalog.current.only(self._names).models
        owned = [model for model in listed if owns(model, self._device, self._deployment)]
        self._configs = {model.name: model for model in owned}
        self._stamps = {model.name: self._catalog.stamp(model.name) for model in listed}
        self.changed = {
            name
            for name, model in self._configs.items()
            if name not in old
            or _engine_keys(old[name]) != _engine_keys(model)
            or old_stamps[name] != self._stamps[name]
        }
        self._models = {name: self._servable(model) for name, model in self._configs.items()}
        guests = [model for model in listed if is_guest(model, self._device, self._deployment)]
        self.budget = self.device_bytes - sum(self._bytes_here(model, self._config(model), 0) for model in guests)
        self._keep_pins()
        return True

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def names(self) -> set[str]:
        """The names of all models, also of those that cannot fit."""
        return set(self._models)

    def models(self) -> dict[str, ServableModel]:
        """The models for the policy."""
        return self._models

    def num_bytes(self, name: str) -> int:
        """The memory that a model needs at least."""
        return self._models[name].num_bytes

    def is_same(self, plan: LoadPlan) -> bool:
        """Would the model be loaded in the same way now?"""
        model = self._configs[plan.model.name]
        return _engine_keys(model) == _engine_keys(plan.model) and plan.stamp == self._stamps[model.name]

    def begin_eager(self) -> list[str]:
        """The models to load at the start: all that are pinned, then eager ones by name while memory lasts.

        Raises ConfigError if the pinned ones do not fit.
        """
        free, chosen = self.budget, []
        for each in sorted(self._models.values(), key=lambda each: (not each.is_pinned, each.name)):
            if each.is_pinned and each.num_bytes > free:
                pinned = sum(other.num_bytes for other in self._models.values() if other.is_pinned)
                raise ConfigError(
                    f"The pinned models need {format_bytes(pinned)}, and {self._device.name} has "
                    f"{format_bytes(self.budget)} for models. Remove `pinned` from {each.name}, or raise device_memory."
                )
            is_counted = self.replicas(each.name) is not None  # loaded later, if other launchers do not have it
            is_slow = bool(self._configs[each.name].command)  # the server may take longer than a worker has to start
            if each.is_eager and each.num_bytes <= free and not (is_counted or is_slow):
                chosen.append(each.name)
                free -= each.num_bytes
        return chosen

    def room_problem(self, name: str) -> str:
        """The reason for which a model never fits; empty if it does."""
        model = self._models[name]
        room = room_for(model, list(self._models.values()), self.budget)
        if model.num_bytes <= room:
            return ""
        pinned = " beside its pinned models" if room < self.budget else ""
        return too_large(model.num_bytes, self._device.name, room, pinned)

    def plan(self, name: str, free_bytes: int, resident: Collection[str] = ()) -> LoadPlan:
        """The load of a model into free memory, beside models that are `resident`."""
        model, stamp = self._configs[name], self._stamps[name]
        config = self._config(model)
        if config.slots == AUTO_SLOTS:
            absent = [each for each in self._configs.values() if each.name != name and each.name not in resident]
            room = free_bytes - sum(self._usual_bytes(each) for each in absent)
            most = max(min(_USUAL_SLOTS, self._slots(model, config, free_bytes)), self._slots(model, config, room))
            config = msgspec.structs.replace(config, most_slots=most)
        devices = engine_devices(model, self._device, self._deployment)
        return LoadPlan(
            model=model,
            stamp=stamp,
            config=config,
            environment=device_environment(devices),
            num_bytes=self._bytes_here(model, config, free_bytes),
        )

    def _slots(self, model: ModelConfig, config: EngineConfig, free_bytes: int) -> int:
        stamp, on_gpu = self._stamps[model.name], self._is_on_gpu(config)
        return model_slots(model, stamp, config, free_bytes=self._free_for(model, free_bytes), on_gpu=on_gpu)

    def _free_for(self, model: ModelConfig, free_bytes: int) -> int:
        """The memory for a whole model, if that for its part on this device is `free_bytes`."""
        part = part_on(model, self._device, self._deployment)
        return int(max(0, free_bytes) / part) if part else 0

    def _usual_bytes(self, model: ModelConfig) -> int:
        """The bytes of a model that is not in memory, with the usual slots where they are not set: it may be loaded beside."""
        config = self._config(model)
        if config.slots == AUTO_SLOTS:
            config = msgspec.structs.replace(config, slots=_USUAL_SLOTS)
        return self._bytes_here(model, config, 0)

    def replicas(self, name: str) -> int | None:
        """The number of launchers that may have the model in memory; None for all."""
        replicas = self._configs[name].replicas
        return None if replicas == "all" else replicas

    def _servable(self, model: ModelConfig) -> ServableModel:
        return ServableModel(
            name=model.name,
            num_bytes=self._bytes_here(model, self._config(model), 0),
            is_eager=model.load == "eager",
            is_pinned=model.pinned,
            keep_alive_seconds=model.keep_alive_seconds,
        )

    def _keep_pins(self) -> None:
        """Pin the models of admins that fit beside those pinned in files; another pin would keep a pinned model from loading."""
        free = self.budget - sum(each.num_bytes for each in self._models.values() if each.is_pinned)
        self.pins_without_room = set()
        for name in self._pins:
            model = self._models.get(name)
            if model is None or model.is_pinned:
                continue
            if model.num_bytes > free:
                self.pins_without_room.add(name)
                continue
            self._models[name] = replace(model, is_pinned=True)
            free -= model.num_bytes

    def _config(self, model: ModelConfig) -> EngineConfig:
        devices = engine_devices(model, self._device, self._deployment)
        config = engine_config(self._settings, model, self._device.name, self._cores, devices)
        return with_tuning(self._settings, model, self._stamps[model.name], config, self._device)

    def _bytes_here(self, model: ModelConfig, config: EngineConfig, free_bytes: int) -> int:
        """The bytes that a model needs on this device, which may have a part of it."""
        free_bytes, on_gpu = self._free_for(model, free_bytes), self._is_on_gpu(config)
        whole = model_bytes(model, self._stamps[model.name], config, free_bytes=free_bytes, on_gpu=on_gpu)
        return math.ceil(whole * part_on(model, self._device, self._deployment))

    def _is_on_gpu(self, config: EngineConfig) -> bool:
        return self._device.kind is not DeviceKind.CPU and config.gpu_layers != 0


def _engine_keys(model: ModelConfig) -> dict[str, object]:
    """All that a loaded engine and its consumers depend on."""
    return {**dict(model), **_OF_RESIDENCY}
