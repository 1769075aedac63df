"""Folders in the format of Hugging Face, read without torch: their sizes, and a sentence for each that is broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.models import hf_folder
from core.models.hf_folder import FolderError, answer_files, check_folder, find_folder, read_config, tensor_counts
from core.models.model_files import has_weights, load_model, weight_paths

TENSORS = {
    "a": {"dtype": "BF16", "shape": [4, 3]},
    "b": {"dtype": "F32", "shape": []},
    "c": {"dtype": "BF16", "shape": [5]},
}


def write_folder(folder: Path, config: object = None, tensors: object = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"architectures": ["LlamaForCausalLM"]}))
    header = json.dumps({"__metadata__": {"format": "pt"}, **TENSORS} if tensors is None else tensors).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def test_the_numbers_of_all_tensors_are_counted_by_format(tmp_path: Path) -> None:
    assert tensor_counts(write_folder(tmp_path)) == {"BF16": 17, "F32": 1}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a":"b"}', struct.pack("<Q", 1 << 40)],
)
def test_a_broken_file_of_tensors_is_named(content: bytes, tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(FolderError, match=r"model\.safetensors is not a whole safetensors file"):
        tensor_counts(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    (write_folder(tmp_path) / "config.json").write_text(text)
    with pytest.raises(FolderError, match=r"config\.json (cannot be read|is not a JSON object)"):
        read_config(tmp_path)


def test_the_configuration_of_the_part_that_reads_text_counts(tmp_path: Path) -> None:
    config = {"hidden_size": 1, "text_config": {"hidden_size": 2}}
    assert read_config(write_folder(tmp_path, config))["hidden_size"] == 2


FAULTS: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    (lambda folder: folder.rename(folder.with_name("gone")), "is no folder"),
)


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_folder_that_cannot_be_served_is_refused_with_the_line_of_its_key(
    damage: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "missing_packages", list)
    damage(write_folder(tmp_path / "weights"))
    with pytest.raises(FolderError, match=message):
        check_folder(tmp_path / "weights")
    file = tmp_path / "m.yaml"
    file.write_text("name: m\nbackend: transformers\nparameters:\n  model: weights\n")
    with pytest.raises(ConfigError, match=rf"m\.yaml, line 4: parameters\.model: .*{message}"):
        load_model(file, need_weights=True)
    assert not has_weights(load_model(file))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("'hf:'", "is no repository"),
        ("hf:only", "is no repository"),
        ("hf:a/b/c", "is no repository"),
        ("hf:a/b c", "is no repository"),
        ('"\\0"', "is no path of a folder"),
        ("~nobody-of-this-name/x", "is no path of a folder"),
    ],
)
def test_a_name_that_is_no_folder_is_refused(value: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"name: m\nbackend: transformers\nparameters:\n  model: {value}\n")
    with pytest.raises(ConfigError, match=rf"line 4: parameters\.model: .*{message}"):
        load_model(file)


def test_without_the_extra_a_model_file_names_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "weights")
    file = tmp_path / "m.yaml"
    file.write_text("name: m\nbackend: transformers\nparameters: {model: weights}\n")
    monkeypatch.setattr(hf_folder, "missing_packages", lambda: ["torch", "transformers"])
    with pytest.raises(ConfigError, match=r"line 2: .*needs torch and transformers\. Install .*make transformers"):
        load_model(file, need_weights=True)
    assert load_model(file).parameters.model == str(tmp_path / "weights")


def test_the_files_of_a_folder_are_those_that_decide_its_answers(tmp_path: Path) -> None:
    write_folder(tmp_path / "weights")
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin"):
        (tmp_path / "weights" / name).write_text("")
    file = tmp_path / "m.yaml"
    file.write_text("name: m\nbackend: transformers\nparameters: {model: weights}\n")
    names = [path.name for path in weight_paths(load_model(file))]
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert has_weights(load_model(file))


def test_a_repository_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_folder("hf:org/tiny") is None
    folder = write_folder(tmp_path / "models--org--tiny" / "snapshots" / "abc")
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("abc\n")
    assert find_folder("hf:org/tiny") == folder
    assert find_folder("hf:org/tiny@abc") == folder
    assert find_folder("hf:org/tiny@other") is None
    assert [path.name for path in answer_files(folder)] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["weights", "hf:org/tiny"])
def test_a_folder_without_its_backend_gets_the_name_of_it(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "weights")
    file = tmp_path / "m.yaml"
    file.write_text(f"name: m\nparameters:\n  model: {name}\n")
    with pytest.raises(ConfigError, match=r"line 3: parameters\.model: .* needs `backend: transformers`"):
        load_model(file)


@pytest.mark.parametrize("device", ["GPU 1", "cuda:x", "", "CUDA"])
def test_a_device_that_torch_does_not_name_is_refused(device: str, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"name: m\nbackend: transformers\ndevice: {device!r}\nparameters: {{model: weights}}\n")
    with pytest.raises(ConfigError, match="line 3: device must be a device by the name of torch"):
        load_model(file)
