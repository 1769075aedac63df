"""Keys of a model file that place a model: on how many devices, on which ones, and how it is divided among several."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from core.devices.names import GPU_KINDS, DeviceKind, DeviceName, parse_device
from core.errors import ConfigError
from core.models.engine_options import SplitMode

_MAX_REPLICAS: Final = 4096
_KINDS: Final = frozenset(map(str, DeviceKind))


def _number_or_all(value: object) -> object:
    """Give one message where a union would give one for each of its members."""
    if value == "all" or (type(value) is int and 1 <= value <= _MAX_REPLICAS):
        return value
    raise ValueError(f"must be a whole number from 1 to {_MAX_REPLICAS}, or all")


class PlacementFields(BaseModel):
    """`devices` of a kind (`cpu`, `cuda`) stands for any one device of it; several names divide the model among them."""

    replicas: Annotated[int | Literal["all"], BeforeValidator(_number_or_all)] = Field(
        "all", description="Devices that may have the model in memory at the same time: a number, or all."
    )
    devices: tuple[str, ...] = Field(
        (),
        description="The device of the model: cuda:0, or cpu or cuda for any of them; several GPUs divide the model among them. "
        "Default: any device.",
    )
    split_mode: SplitMode | None = Field(
        None, strict=False, description="Way to divide the model among its devices: layer or row; none is one device."
    )
    tensor_split: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (), description="The part of each device, such as [3, 1]; default: by their memory."
    )

    @field_validator("devices", "tensor_split", mode="before")
    @classmethod
    def _placement_lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("devices")
    @classmethod
    def _devices_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name in GPU_KINDS else str(_parse(name)) for name in names)

    @model_validator(mode="after")
    def _placement_agrees(self) -> Self:
        _check_devices(self.devices)
        is_spread = len(self.devices) > 1
        if is_spread and self.replicas not in ("all", 1):
            raise ValueError(
                "replicas: a model that is divided among devices has one replica; remove one of the two keys"
            )
        if len(self.devices) == 1 and self.replicas not in ("all", 1) and self.devices[0] not in _KINDS:
            raise ValueError(f"replicas: {self.devices[0]} is one device and holds one replica, not {self.replicas}")
        if is_spread and self.split_mode is SplitMode.NONE:
            raise ValueError("split_mode: none keeps a model on one device, but devices names several")
        if not is_spread and self.split_mode in (SplitMode.LAYER, SplitMode.ROW):
            raise ValueError("split_mode: there is nothing to divide: name several GPUs in devices")
        if self.tensor_split and len(self.tensor_split) != len(self.devices):
            raise ValueError(
                f"tensor_split: has {len(self.tensor_split)} parts, and devices has {len(self.devices)} names"
            )
        if self.tensor_split and not all(self.tensor_split):
            raise ValueError("tensor_split: a part is 0: leave that device out of devices")
        return self


def _parse(name: str) -> DeviceName:
    try:
        return parse_device(name)
    except ConfigError:
        raise ValueError(f"{name!r} is not a device: write cpu, cuda, cuda:0 or cpu@0-15") from None


def _check_devices(names: tuple[str, ...]) -> None:
    """Raise ValueError unless one device is named, or several GPUs of one kind."""
    if len(set(names)) < len(names):
        raise ValueError("devices: names a device twice")
    if pinned := next((name for name in names if "@" in name and not name.startswith(DeviceKind.CPU)), None):
        raise ValueError(f"devices: {pinned}: name the GPU without CPUs")
    if len(names) < 2:
        return
    if kinds := [name for name in names if name in _KINDS or name.startswith("cpu@")]:
        on_cpu = kinds[0].startswith("cpu")
        advice = "for layers on the CPU, set gpu_layers" if on_cpu else "number each, as in cuda:0, cuda:1"
        raise ValueError(f"devices: a model is divided among GPUs, not {kinds[0]} and others; {advice}")
    if len({parse_device(name).kind for name in names}) > 1:
        raise ValueError("devices: a model is divided among GPUs of one kind")
