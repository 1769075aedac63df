"""Folders that cannot be served get one sentence, and no folder runs code of its own unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import BackendKind, EngineConfig, TransformersConfig
from engine.errors import ModelFailed, ModelMissing
from tests.support.tiny_folders import TinyFolder, make_folder, torch, transformers

from engine.backends.transformers.backend import TransformersBackend  # isort: skip - after the check for the extra


def load(folder: Path, options: TransformersConfig | None = None, **given: Any) -> TransformersBackend:
    values = {"slots": 2, "context_size": 64, "threads": 1, **given}
    config = EngineConfig(
        model="m", endpoint="", backend=BackendKind.TRANSFORMERS, model_path=str(folder), transformers=options, **values
    )
    return TransformersBackend(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", TinyFolder.LLAMA)


def edit(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def write(file: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return change


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4000])


FAULTS = (
    (write("config.json", b"{"), "config.json cannot be read"),
    (write("config.json", b"[]"), "config.json is not a JSON object"),
    (edit("config.json", architectures=None), "names no class of a model"),
    (edit("config.json", architectures=[3]), "names no class of a model"),
    (edit("config.json", is_encoder_decoder=True), "is an encoder and a decoder"),
    (edit("config.json", vision_config={}), "reads images or sound"),
    (edit("config.json", model_type="no-such-type"), "transformers cannot load"),
    (edit("config.json", hidden_size=32), "transformers cannot load"),
    (edit("config.json", num_hidden_layers=4), "have no values for model.layers.2"),
    (edit("config.json", vocab_size=40), "tokens, and the model 40"),
    (edit("config.json", layer_types=["full_attention", "linear_attention"]), "has layers of linear_attention"),
    (write("tokenizer.json", b"{}"), "cannot load the tokenizer"),
    (write("tokenizer.json", b"\xff\xfe"), "cannot load the tokenizer"),
    (write("generation_config.json", b"nothing"), "generation_config.json cannot be read"),
    (write("model.safetensors", b"short"), "transformers cannot load"),
    (cut_weights, "transformers cannot load"),
)


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_broken_folder_gets_one_sentence(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelFailed, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_repository_of_the_hub_is_taken_from_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFailed, match="The hub did not give hf:acme/tiny: ") as caught:
        load(Path("hf:acme/tiny"))
    assert "\n" not in str(caught.value)
    cached = tmp_path / "hub" / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / "abc")
    assert load(Path("hf:acme/tiny")).decoder.slots == 2


def test_a_missing_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="There is no folder"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1), "layers of"),
        (lambda: transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2), "in code of its own"),
    ],
)
def test_a_model_whose_memory_is_no_lane_is_refused_by_name(
    make: Callable[[], Any], message: str, folder: Path
) -> None:
    config = make()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(ModelFailed, match=rf"ForCausalLM .*{message}.*backend: llama"):
        load(folder)


def test_attention_that_differs_from_the_librarys_is_found_before_a_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.backends.transformers import attention

    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention, "scaled_dot_product_attention", lambda *given, **options: plain(*given, **options).flip(2)
    )
    with pytest.raises(ModelFailed, match="LlamaForCausalLM computes attention in a way"):
        load(folder)


def test_code_of_a_folder_runs_only_if_the_model_file_allows_it(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"from pathlib import Path\nPath({str(mark)!r}).write_text('')\nfrom transformers import LlamaConfig\n"
    (folder / "own.py").write_text(source + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n")
    edit("config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})(folder)
    with pytest.raises(ModelFailed, match=r"`trust_remote_code: true`|cannot load"):
        load(folder)
    assert not mark.exists()


def test_a_context_beyond_the_rows_of_positions_is_refused(folder: Path) -> None:
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=48, eos_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(ModelFailed, match="GPT2LMHeadModel has no position 63. Lower `context_size`"):
        load(folder)
    assert load(folder, context_size=48).decoder.slots == 2


def test_options_of_embeddings_are_refused_where_text_is_generated(folder: Path) -> None:
    with pytest.raises(ModelFailed, match="is for models that only embed"):
        load(folder, TransformersConfig(attention="eager"))


def test_the_format_of_the_weights_may_be_chosen(folder: Path) -> None:
    backend: Any = load(folder, TransformersConfig(dtype="bfloat16"))
    assert str(backend.decoder._lanes.keys[0].dtype) == "torch.bfloat16"


def test_slots_follow_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.backends.transformers import memory

    bytes_of_a_slot = 2 * 2 * 64 * 4 * 256  # layers, keys and values, width, float32, the tokens in whole blocks of 256
    monkeypatch.setattr(memory, "host_bytes", lambda: 5 * bytes_of_a_slot)
    assert load(folder, slots=0, spare_slots=2, context_size=200).decoder.slots == 3


def test_too_many_slots_are_refused_with_the_keys_that_lower_them(folder: Path) -> None:
    with pytest.raises(ModelFailed, match="Lower `slots`, `spare_slots` or `context_size`"):
        load(folder, slots=200, context_size=1 << 38)
