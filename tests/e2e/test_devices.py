"""`serve` on two devices: each a part of the CPUs of this machine, with engines of llama.cpp that nothing else computes on."""

from __future__ import annotations

import os
from pathlib import Path
from socket import gethostname

import httpx2
import msgspec
import pytest

from engine.config import EngineConfig
from tests.support.processes import command_of
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines
from tests.support.tiny_models import TinyModel, write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_two_parts_of_the_cpu_serve_chats_and_a_batch(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    first, second = (f"cpu@{cpu}" for cpu in cpus)
    models = tmp_path / "models"
    models.mkdir()
    write_tiny_model(models / "tiny.gguf", TinyModel.LLAMA)
    for name, keys in (("both", ""), ("one", f"devices: ['{first}']\n"), ("two", f"devices: ['{second}']\n")):
        (models / f"{name}.yaml").write_text(f"name: {name}\nparameters: {{model: tiny.gguf}}\nslots: 2\n{keys}")
    budgets = {"MILLRACE_DEVICE_MEMORY": f"{first}=300MiB,cpu=200MiB", "MILLRACE_SHARD_LINES": "4"}
    stack = StackProcess(tmp_path, models, device=f"{first},{second}", **budgets)
    stack.start()
    try:
        engines = [process for process in stack.descendants() if "engine.process.server" in command_of(process)]
        configs = [msgspec.json.decode(process.cmdline()[-1], type=EngineConfig) for process in engines]
        places = sorted(
            (config.model, process.cpu_affinity()) for config, process in zip(configs, engines, strict=True)
        )
        assert places == [("both", [cpus[0]]), ("both", [cpus[1]]), ("one", [cpus[0]]), ("two", [cpus[1]])]
        assert {config.threads for config in configs} == {1}
        assert len({config.turn_key for config in configs}) == 2, (
            "engines of one device take turns, those of two do not"
        )

        with stack.client() as client:
            batch = start_batch(client, write_lines(tmp_path / "lines.jsonl", batch_lines(24, "both", max_tokens=4)))
            for model in ("one", "two", "both"):
                client.completions.create(model=model, prompt="Once", max_tokens=2)
            wait_for(lambda: client.batches.retrieve(batch).status == "completed", "the batch ends")
            assert len(result_lines(client, client.batches.retrieve(batch).output_file_id)) == 24
        for device, size in ((first, 300 << 20), (second, 200 << 20)):
            labels = f'device="{device}",host="{gethostname()}",memory="budget"'
            assert float(stack.metrics().partition(f"millrace_device_memory_bytes{{{labels}}} ")[2].split()[0]) == size
        assert httpx2.get(f"{stack.url}/readyz").json()["status"] == "ok"
    finally:
        stack.close()


def test_a_second_device_helps_with_the_batch_of_a_model_that_the_first_has_loaded(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    models = tmp_path / "models"
    models.mkdir()
    model = "name: late\nbackend: fake\nload: lazy\nslots: 2\nstep_seconds: 0.02\ncontext_size: 512\n"
    (models / "late.yaml").write_text(model)
    stack = StackProcess(tmp_path, models, device=f"cpu@{cpus[0]},cpu@{cpus[1]}", MILLRACE_SHARD_LINES="4")
    stack.start()

    def engines() -> int:
        return sum("engine.process.server" in command_of(process) for process in stack.descendants())

    try:
        assert engines() == 0
        with stack.client() as client:
            batch = start_batch(client, write_lines(tmp_path / "lines.jsonl", batch_lines(400, "late", max_tokens=16)))
            wait_for(lambda: engines() == 2, "both devices have it")
            wait_for(lambda: client.batches.retrieve(batch).status == "completed", "the batch ends")
            assert len(result_lines(client, client.batches.retrieve(batch).output_file_id)) == 400
    finally:
        stack.close()
