"""`models add` of files and folders: what is written, what is chosen, and one sentence for what cannot be served."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml

from cli.commands import models_add
from core.models.models_folder import load_models
from tests.support.devices import GIB, fake_devices, gpus
from tests.support.gguf_bytes import gguf as gguf_bytes
from tests.support.gguf_bytes import tensor
from tests.support.tiny_models import TinyModel, write_tiny_lora, write_tiny_model
from tests.unit.cli.models.conftest import DEMO, Command, visible
from tests.unit.core.models.test_gguf_header import parts


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-Q8_0.gguf"
    path.write_bytes(DEMO)
    return path


def written(command: Command, name: str) -> dict[str, object]:
    values = yaml.safe_load((command.models / f"{name}.yaml").read_text())
    assert isinstance(values, dict)
    return values


def test_a_file_is_served_from_where_it_lies(command: Command, demo: Path) -> None:
    added = command.add(demo)
    assert written(command, "tiny") == {
        "name": "tiny",
        "parameters": {"model": str(demo)},
        "context_size": 1024,
        "slots": "auto",
    }
    assert added["memory_bytes"] == added["weights_bytes"] + added["kv_bytes"] + added["compute_bytes"]
    assert (added["fits"], added["device"], added["budget_bytes"]) == (True, "cpu", int(0.8 * 16 * GIB))
    assert visible(command.models) == {"tiny.yaml"}


def test_the_command_ends_when_a_server_lists_the_model(
    command: Command, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [["demo"], ["demo"], ["demo", "tiny"]]

    class Server:
        def get(self, path: str) -> dict[str, object]:
            assert path == "/models"
            return {"data": [{"id": name} for name in listed.pop(0)]}

    monkeypatch.setattr(models_add, "connected", lambda *_: nullcontext(Server()))
    command.add(demo)
    assert listed == []


def test_comments_tell_the_choices(command: Command, demo: Path) -> None:
    command.add(demo)
    text = (command.models / "tiny.yaml").read_text()
    assert text.startswith("# llama, 1.2 million parameters, Q8_0, trained on 1,024 tokens, chat template.\n")
    assert f"# Written by `millrace models add {demo}`" in text
    assert "# As many tokens as the model was trained on.\ncontext_size: 1024" in text
    assert "as far as memory holds it.\nslots: auto" in text
    assert "of 12.8 GiB on cpu: 1 MiB weights + 25 MiB keys and values" in text


def test_a_file_may_be_copied_or_lie_in_the_models_folder(command: Command, demo: Path) -> None:
    command.add(demo, copy=True)
    assert written(command, "tiny")["parameters"] == {"model": "tiny/tiny-Q8_0.gguf"}
    assert (command.models / "tiny" / "tiny-Q8_0.gguf").read_bytes() == DEMO
    (command.models / "here.gguf").write_bytes(DEMO)
    command.add(command.models / "here.gguf")
    assert written(command, "here")["parameters"] == {"model": "here.gguf"}
    assert [model.name for model in load_models(command.models).models] == ["here", "tiny"]


def test_options_are_taken_as_they_are(command: Command, demo: Path) -> None:
    command.add(demo, name="org/Mine", slots="auto", context=300)
    values = written(command, "org--Mine")
    assert (values["name"], values["slots"], values["context_size"]) == ("org/Mine", "auto", 300)
    assert command.add(demo, name="two", slots="2")["slots"] == 2
    assert "--slots: 'many' is neither auto nor a whole number from 1 to 256." in command.failure(demo, slots="many")
    assert "--name: 'a b' is no name of a model" in command.failure(demo, name="a b")
    assert "--name: '../x' is no name of a model" in command.failure(demo, name="../x")


def test_a_name_that_is_taken_is_not_overwritten(command: Command, demo: Path) -> None:
    command.add(demo)
    file = command.models / "tiny.yaml"
    before = file.read_text()
    assert f"A model is called tiny already, in {file}. Choose another with --name, or replace it with --force." in (
        command.failure(demo)
    )
    assert file.read_text() == before
    command.add(demo, force=True, slots="3")
    assert written(command, "tiny")["slots"] == 3
    (command.models / "other.yaml").write_text("name: o\nbackend: fake\naliases: [taken]\n")
    for force in (False, True):
        assert f"in {command.models / 'other.yaml'}. Choose another with --name." in (
            command.failure(demo, name="taken", force=force)
        )
    (command.models / "broken.yaml").write_text("name: [\n")
    assert "broken.yaml exists" in command.failure(demo, name="broken")


def test_the_yaml_takes_the_place_of_a_bare_file(command: Command) -> None:
    command.models.mkdir()
    (command.models / "tiny.gguf").write_bytes(DEMO)
    command.add(command.models / "tiny.gguf", slots="2")
    assert [(model.name, model.slots) for model in load_models(command.models).models] == [("tiny", 2)]


def test_a_folder_gives_its_model(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "download"
    (folder / "Q8_0").mkdir(parents=True)
    (folder / "tiny-Q4_K_M.gguf").write_bytes(DEMO)
    (folder / "Q8_0" / "tiny-Q8_0.gguf").write_bytes(DEMO)
    (folder / "mmproj-F16.gguf").write_bytes(b"no model")
    assert command.add(folder)["weights"] == str(folder / "tiny-Q4_K_M.gguf")
    assert command.add(f"{folder}:Q8_0", name="b")["weights"] == str(folder / "Q8_0" / "tiny-Q8_0.gguf")
    assert "has no Q2_K" in command.failure(f"{folder}:Q2_K")
    (tmp_path / "empty").mkdir()
    assert command.failure(tmp_path / "empty") == f"{tmp_path / 'empty'} has no GGUF file."
    (tmp_path / "empty" / "model.safetensors").touch()
    assert "has safetensors and no GGUF file. Look for a repository with GGUF files" in command.failure(
        tmp_path / "empty"
    )


def test_a_split_file_needs_all_its_parts(command: Command, tmp_path: Path) -> None:
    paths = parts(tmp_path, 3, 3)
    assert "big-00002-of-00003.gguf is a part of a split model. Name its first part." in command.failure(paths[1])
    paths[2].unlink()
    assert "big-00003-of-00003.gguf is missing beside big-00001-of-00003.gguf" in command.failure(paths[0])
    folder = tmp_path / "download"
    folder.mkdir()
    for path in paths[:2]:
        path.rename(folder / path.name)
    assert "big-00003-of-00003.gguf is missing: the model has 3 parts, and 2 are there" in command.failure(folder)


MODEL: dict[str, int | str] = {"general.architecture": "llama", "llama.block_count": 1}
WEIGHTS = [tensor("t", [4])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gguf_bytes(MODEL), "x.gguf has a vocabulary and no weights, so it cannot be served."),
        (gguf_bytes({"general.architecture": "clip"}, WEIGHTS, data=16), "(mmproj); add the model itself."),
        (gguf_bytes(MODEL | {"general.type": "mmproj"}, WEIGHTS, data=16), "(mmproj); add the model itself."),
        (gguf_bytes({"general.type": "imatrix"}, WEIGHTS, data=16), "is an importance matrix"),
        (gguf_bytes({}, WEIGHTS, data=16), "has no architecture, or no layers"),
        (gguf_bytes(MODEL | {"llama.pooling_type": 4}, WEIGHTS, data=16), "ranks texts"),
        (b"hello", "x.gguf is no GGUF file: it does not start with `GGUF`."),
        (b"", "x.gguf is no GGUF file: it is empty."),
        (
            DEMO[:-100],
            f"x.gguf is incomplete: it has {len(DEMO) - 100:,} of {len(DEMO):,} bytes. Download it again.",
        ),
    ],
)
def test_files_that_cannot_be_served_get_one_sentence(
    command: Command, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    message = command.failure(path)
    assert reason in message
    assert "\n" not in message


def test_an_adapter_names_its_base(command: Command, tmp_path: Path) -> None:
    message = command.failure(write_tiny_lora(tmp_path / "a.gguf"))
    assert message == (
        "a.gguf is a LoRA adapter, not a model: name it under `lora` in the model file of its base model (architecture llama)."
    )


def test_a_model_of_embeddings_is_served_as_one(command: Command, tmp_path: Path) -> None:
    printed = command.text(write_tiny_model(tmp_path / "bert.gguf", TinyModel.BERT))
    assert written(command, "bert") == {
        "name": "bert",
        "parameters": {"model": str(tmp_path / "bert.gguf")},
        "embeddings": True,
        "context_size": 512,
    }
    assert "/v1/embeddings" in printed


def test_a_base_model_is_tried_with_completions_of_this_machines_server(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_PORT", "9123")
    path = tmp_path / "base.gguf"
    path.write_bytes(DEMO.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    printed = command.text(path)
    assert "no chat template" in printed
    assert "http://127.0.0.1:9123/v1/completions" in printed
    assert (
        "# The GGUF has no chat template, as a base model: use /v1/completions"
        in (command.models / "base.yaml").read_text()
    )


def test_metadata_with_strange_characters_stays_a_comment(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "evil.gguf"
    writer = gguf.GGUFWriter(str(path), "llama\nname: other\n#")
    writer.add_uint32("llama\nname: other\n#.block_count", 1)
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    what = tmp_path / "a\nb: c.gguf"
    path.rename(what)
    command.add(what)
    assert written(command, "a-b-c") == written(command, "a-b-c") | {
        "name": "a-b-c",
        "parameters": {"model": str(what)},
    }


@pytest.mark.parametrize("is_auto", [False, True])
def test_less_memory_gives_less_context_then_fewer_slots(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_auto: bool
) -> None:
    monkeypatch.setenv("MILLRACE_SLOTS", "auto" if is_auto else "8")
    long = tmp_path / "long.gguf"
    key = b"llama.context_length" + bytes((4, 0, 0, 0))
    long.write_bytes(DEMO.replace(key + (1024).to_bytes(4, "little"), key + (32768).to_bytes(4, "little")))
    chosen = {}
    for mebibytes in (4000, 400, 250, 120):
        monkeypatch.setenv("MILLRACE_DEVICE_MEMORY", f"{mebibytes}MiB")
        added = command.add(long, name=f"m{mebibytes}")
        chosen[mebibytes] = added["slots"], added["context_size"], added["fits"]
        assert added["memory_bytes"] <= mebibytes << 20
    contexts = {4000: 8192, 400: 4096, 250: 2048, 120: 2048}
    slots = {4000: 8, 400: 8, 250: 4, 120: 4}
    assert chosen == {size: ("auto" if is_auto else slots[size], context, True) for size, context in contexts.items()}
    assert "The model was trained on 32,768 tokens" in (command.models / "m400.yaml").read_text()
    reason = "measured when the model is first loaded" if is_auto else "side by side; 8 need too much memory."
    assert reason in (command.models / "m250.yaml").read_text()


def test_a_model_that_does_not_fit_is_added_with_a_warning(
    command: Command, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DEVICE_MEMORY", "50MiB")
    printed = command.text(demo)
    assert "tiny needs more memory than its models may have on cpu" in printed
    assert written(command, "tiny")["slots"] == "auto"


def test_the_memory_of_a_gpu_counts_where_the_inventory_has_one(
    command: Command, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = fake_devices(tmp_path, gpus=gpus(2), build={"kinds": ["cuda"]}, memory={"total_bytes": GIB})
    for name, value in devices.items():
        monkeypatch.setenv(name, value)
    added = command.add(demo, slots="auto")
    assert (added["device"], added["budget_bytes"]) == ("cuda:0", int(0.9 * 12 * GIB))


def test_the_folder_of_models_may_be_new(command: Command, demo: Path, tmp_path: Path) -> None:
    command.models = tmp_path / "a" / "b"
    command.add(demo)
    assert visible(command.models) == {"tiny.yaml"}


def test_json_has_everything(command: Command, demo: Path) -> None:
    assert set(command.add(demo)) == {
        "name", "file", "weights", "context_size", "slots", "device", "memory_bytes", "weights_bytes", "kv_bytes",
        "compute_bytes", "budget_bytes", "fits",
    }  # fmt: skip
    assert json.dumps(command.add(demo, force=True))
