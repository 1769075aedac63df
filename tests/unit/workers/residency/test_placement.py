"""Placement: each model has launchers that may load it, and a divided one takes its parts of several devices."""

from __future__ import annotations

from core.devices.inventory import Device
from core.devices.names import parse_device
from core.models.model_files import ModelConfig
from workers.residency.placement import engine_devices, is_guest, missing_devices, owns, part_on, parts

GIB = 1 << 30


def device(name: str, gib: int | None = 24) -> Device:
    return Device(name=name, kind=parse_device(name).kind, total_bytes=gib and gib * GIB)


CPU, GPU0, GPU1, GPU2 = DEPLOYMENT = (device("cpu"), device("cuda:0"), device("cuda:1", 8), device("cuda:2"))


def model(**keys: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "backend": "fake", **keys})


def owners(*names: str, deployment: tuple[Device, ...] = DEPLOYMENT) -> list[str]:
    return [each.name for each in deployment if owns(model(devices=list(names)), each, deployment)]


def test_a_model_may_be_on_any_device_unless_it_names_some() -> None:
    assert owners() == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    assert owners("cuda:1") == ["cuda:1"]
    assert owners("cpu") == ["cpu"]
    assert owners("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert owners("cuda:7") == []


def test_any_device_on_the_cpu_is_one_named_cpu() -> None:
    pinned = (device("cpu@0-3"), device("cpu@4-7"))
    assert owners("cpu", deployment=pinned) == ["cpu@0-3", "cpu@4-7"]
    assert owners("cpu@7,4-6", deployment=pinned) == ["cpu@4-7"]


def test_a_divided_model_belongs_to_the_launcher_of_its_first_device() -> None:
    assert owners("cuda:2", "cuda:0") == ["cuda:2"]
    divided = model(devices=["cuda:2", "cuda:0"])
    assert engine_devices(divided, GPU2, DEPLOYMENT) == (GPU2, GPU0)
    assert engine_devices(model(), GPU1, DEPLOYMENT) == (GPU1,)
    assert [is_guest(divided, each, DEPLOYMENT) for each in DEPLOYMENT] == [False, True, False, False]


def test_a_model_with_devices_that_the_worker_lacks_is_not_loaded() -> None:
    absent = model(devices=["cuda:0", "cuda:7"])
    assert owners("cuda:0", "cuda:7") == []
    assert missing_devices(absent, DEPLOYMENT) == ("cuda:7",)
    assert not any(is_guest(absent, each, DEPLOYMENT) for each in DEPLOYMENT)
    assert missing_devices(model(), DEPLOYMENT) == ()


def test_parts_follow_the_memory_of_the_devices_or_the_model_file() -> None:
    assert parts(model(devices=["cuda:0", "cuda:1"]), (GPU0, GPU1)) == (0.75, 0.25)
    assert parts(model(devices=["cuda:0", "cuda:1"], tensor_split=[1, 4]), (GPU0, GPU1)) == (0.2, 0.8)
    assert parts(model(devices=["cuda:0", "cuda:1"]), (GPU0, device("cuda:1", None))) == (0.5, 0.5)


def test_the_parts_of_all_devices_add_up() -> None:
    divided = model(devices=["cuda:1", "cuda:0"], tensor_split=[1, 3])
    assert [part_on(divided, each, DEPLOYMENT) for each in DEPLOYMENT] == [0, 0.75, 0.25, 0]
    assert [part_on(model(devices=["cuda:1"]), each, DEPLOYMENT) for each in DEPLOYMENT] == [0, 0, 1, 0]


def test_a_model_is_the_same_after_it_was_sent_to_another_process() -> None:
    divided = model(devices=["cuda:1", "cuda:0"], tensor_split=[1, 3], split_mode="row")
    assert ModelConfig.model_validate_json(divided.model_dump_json()) == divided
    assert ModelConfig.model_validate_json(model().model_dump_json()) == model()
