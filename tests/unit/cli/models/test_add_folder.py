"""`millrace models add` of folders in the format of Hugging Face, from this machine and from the hub, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.models import weights
from cli.models.removal import plan_removal, remove
from cli.models.sources import hub
from core.models import hf_folder
from core.models.model_files import load_model
from tests.support.hub import StandInHub
from tests.unit.cli.models.conftest import Command, add_file
from tests.unit.core.models.test_hf_folder import write_folder

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096, **SHAPE}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the extra be installed, whether it is or not."""
    for module in (weights, hub, hf_folder):
        monkeypatch.setattr(module, "missing_packages", list)


def test_a_folder_is_named_in_a_model_file_for_transformers(command: Command, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-Llama", LLAMA)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    added = command.add(folder)
    assert added["weights"] == str(folder)
    model = load_model(Path(added["file"]), need_weights=True)
    assert (model.name, model.backend, model.context_size) == ("tiny-llama", "transformers", 4096)
    text = Path(added["file"]).read_text()
    assert text.startswith("# llama, 18 parameters, BF16, trained on 4,096 tokens, chat template.")
    assert not model.embeddings


def test_a_copy_lies_in_the_models_folder(command: Command, tmp_path: Path) -> None:
    added = command.add(write_folder(tmp_path / "tiny", LLAMA), copy=True)
    assert added["weights"] == "tiny"
    assert (command.models / "tiny" / "model.safetensors").is_file()
    assert load_model(Path(added["file"]), need_weights=True).parameters.model == str(command.models / "tiny")


def test_an_encoder_embeds_and_has_no_slots(command: Command, tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["BertModel"], "max_position_embeddings": 512}
    model = load_model(Path(command.add(write_folder(tmp_path / "bert", config))["file"]))
    assert (model.embeddings, model.slots, model.context_size) == (True, None, 512)


REFUSED = (
    ({**LLAMA, "is_encoder_decoder": True}, "is an encoder and a decoder"),
    ({**LLAMA, "vision_config": {}}, "reads images or sound"),
    ({"model_type": "llama"}, "names no class of a model"),
)


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_a_folder_that_cannot_be_served_is_refused(
    config: dict[str, Any], message: str, command: Command, tmp_path: Path
) -> None:
    assert message in command.failure(write_folder(tmp_path / "other", config))


def test_without_the_extra_the_way_to_install_it_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (weights, hub):
        monkeypatch.setattr(module, "missing_packages", lambda: ["torch"])
    message = command.failure(write_folder(tmp_path / "tiny", LLAMA))
    assert "convert_hf_to_gguf.py" in message
    assert message.endswith("To serve it as it is: " + hf_folder.INSTALL)


def test_a_repository_without_gguf_is_downloaded_to_the_cache_of_the_hub(
    command: Command, stand_in: StandInHub, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "source", LLAMA)
    for path in folder.iterdir():
        add_file(stand_in, f"acme/tiny/{path.name}", path.read_bytes())
    added = command.add("hf:acme/tiny")
    assert added["weights"] == "hf:acme/tiny"
    model = load_model(Path(added["file"]), need_weights=True)
    assert (model.name, model.backend) == ("tiny", "transformers")


def test_a_removal_takes_a_copied_folder_whole_and_leaves_another_where_it_lies(
    command: Command, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "tiny", LLAMA)
    (folder / "README.md").write_text("of its authors")
    command.add(folder, copy=True, name="copied")
    command.add(folder, name="named")
    for name in ("copied", "named"):
        remove(plan_removal(command.models, name), command.models)
    assert not list(command.models.iterdir())
    assert (folder / "README.md").is_file()
