from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig, Parameters, has_weights, load_model
from core.models.models_folder import load_models
from core.settings import ROOT

MANUAL = ROOT / "docs" / "models.md"

BAD = {
    "not YAML": ("a: [", "line 1 cannot be read as YAML"),
    "a list": ("- a", "is not a model file"),
    "an unknown key": (
        "name: m\nbackend: fake\ncontexts_size: 5",
        "line 3: there is no key 'contexts_size'; did you mean 'context_size'?",
    ),
    "a wrong type": (
        "name: m\nbackend: fake\ncontext_size: big",
        "line 3: context_size must be a whole number, not 'big'.",
    ),
    "a backend we do not have": (
        "name: m\nbackend: gpt",
        "line 2: backend must be llama, transformers, openai or fake, not 'gpt'.",
    ),
    "no name": ("backend: fake", "mine.yaml: name is missing."),
    "a name that cannot be in a URL": ("name: a b\nbackend: fake", "name"),
    "a name that is a way up": ("name: a/../b\nbackend: fake", "name"),
    "a name that begins with a slash": ("name: /b\nbackend: fake", "name"),
    "a name with two slashes": ("name: a//b\nbackend: fake", "name"),
    "a name that ends with a slash": ("name: a/\nbackend: fake", "name"),
    "an alias that is a way up": ("name: a\naliases: [../b]\nbackend: fake", "aliases"),
    "a long name": (f"name: {'a/' * 48}b\nbackend: fake", "name"),
    "no weights": ("name: m", "parameters.model"),
    "weights that are not there": ("name: m\nparameters: {model: no.gguf}", "no.gguf"),
    "slots that are neither a number nor auto": ("name: m\nbackend: fake\nslots: many", "from 1 to 256, or auto"),
    "no slots": ("name: m\nbackend: fake\nslots: 0", "line 3: slots must be"),
    "a KV type we do not have": ("name: m\nbackend: fake\ncache_type_k: q3", "cache_type_k"),
    "quantised values without flash attention": (
        "name: m\nbackend: fake\ncache_type_v: q8_0\nflash_attention: off",
        "cache_type_v",
    ),
    "a shift of what others share": (
        f"name: m\nparameters: {{model: {ROOT / 'models' / 'demo.gguf'}}}\ncontext_shift: true\nkv_layout: unified",
        "context_shift: needs kv_layout to be auto or split",
    ),
    "a way to pool without embeddings": ("name: m\nbackend: fake\npooling: mean", "pooling"),
    "a key of a level that it does not belong to": (
        "name: m\ntemperature: 1",
        "did you mean 'parameters.temperature'?",
    ),
    "a key of another server": ("name: m\nn_ctx: 5", "line 2: there is no key 'n_ctx'; did you mean 'context_size'?"),
    "an unknown key of a part": (
        "name: m\nparameters:\n  temprature: 1\n  model: a",
        "line 3: there is no key 'parameters.temprature'; did you mean 'temperature'?",
    ),
    "a key that is written twice": ("name: m\nbackend: fake\nname: n", "line 3: the key 'name' is on line 1 already"),
    "tabs": ("name: m\nparameters:\n\tmodel: a", "line 3 cannot be read as YAML: found character '\\t' that"),
    "two documents": ("name: m\n---\nname: n", "write one file for each"),
    "a number as text": (
        "name: 5\nbackend: fake",
        "line 1: name must be text (quote it, if it looks like a number), not 5.",
    ),
    "a switch that is none": (
        "name: m\nbackend: fake\nembeddings: maybe",
        "embeddings must be true or false, not 'maybe'.",
    ),
    "a device that is none": (
        "name: m\nbackend: fake\ndevices: [gpu0]",
        "line 3: devices 'gpu0' is not a device: write cpu, cuda, cuda:0 or cpu@0-15.",
    ),
    "devices that are no list": ("name: m\nbackend: fake\ndevices: cuda:0", "line 3: devices must be a list"),
    "a device that is named twice": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cuda:0]",
        "line 3: devices: names a device twice.",
    ),
    "a model that is divided among the CPU and a GPU": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cpu]",
        "line 3: devices: a model is divided among GPUs, not cpu and others; for layers on the CPU, set gpu_layers.",
    ),
    "a model that is divided among any GPUs": (
        "name: m\nbackend: fake\ndevices: [cuda, cuda:1]",
        "not cuda and others; number each, as in cuda:0, cuda:1.",
    ),
    "a model that is divided among kinds of GPUs": (
        "name: m\nbackend: fake\ndevices: [cuda:0, vulkan:1]",
        "line 3: devices: a model is divided among GPUs of one kind.",
    ),
    "a GPU with CPUs": (
        "name: m\nbackend: fake\ndevices: [cuda:0@0-3]",
        "line 3: devices: cuda:0@0-3: name the GPU without",
    ),
    "replicas of a divided model": (
        "name: m\nbackend: fake\nreplicas: 2\ndevices: [cuda:0, cuda:1]",
        "line 3: replicas: a model that is divided among devices has one replica",
    ),
    "more replicas than devices": (
        "name: m\nbackend: fake\ndevices: [cuda:1]\nreplicas: 2",
        "line 4: replicas: cuda:1 is one device and holds one replica, not 2.",
    ),
    "no replica": (
        "name: m\nbackend: fake\nreplicas: 0",
        "line 3: replicas must be a whole number from 1 to 4096, or all.",
    ),
    "a way to divide one device": (
        "name: m\nbackend: fake\nsplit_mode: row",
        "line 3: split_mode: there is nothing to divide: name several GPUs in devices.",
    ),
    "no way to divide several devices": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cuda:1]\nsplit_mode: none",
        "line 4: split_mode: none keeps a model on one device, but devices names several.",
    ),
    "an unknown way to divide": (
        "name: m\nbackend: fake\nsplit_mode: tensor",
        "line 3: split_mode must be none, layer or row, not 'tensor'.",
    ),
    "more parts than devices": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cuda:1]\ntensor_split: [1, 1, 1]",
        "line 4: tensor_split: has 3 parts, and devices has 2 names.",
    ),
    "parts without devices": (
        "name: m\nbackend: fake\ntensor_split: [1]",
        "line 3: tensor_split: has 1 parts, and devices",
    ),
    "a part of nothing": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cuda:1]\ntensor_split: [1, 0]",
        "line 4: tensor_split: a part is 0: leave that device out of devices.",
    ),
    "a negative part": (
        "name: m\nbackend: fake\ndevices: [cuda:0, cuda:1]\ntensor_split: [1, -1]",
        "tensor_split.1 must be at least 0, not -1.",
    ),
    "a GPU for a model on the CPU": (
        "name: m\nbackend: fake\ndevices: [cuda:0]\ngpu_layers: 0",
        "line 4: gpu_layers: 0 keeps the model on the CPU, but devices names a GPU.",
    ),
    "a LoRA that is no list": ("name: m\nbackend: fake\nlora: {path: a.gguf}", "line 3: lora must be a list"),
    "a LoRA without a path": ("name: m\nbackend: fake\nlora: [{scale: 1}]", "line 3: lora.0.path is missing."),
    "a temperature out of range": (
        "name: m\nbackend: fake\nparameters: {temperature: 9}",
        "line 3: parameters.temperature must be at most 2, not 9.",
    ),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_an_error_that_names_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match="mine.yaml") as caught:
        load_models(tmp_path, need_weights=True)
    assert said in str(caught.value)


def test_no_error_speaks_pydantic(tmp_path: Path) -> None:
    for content, _ in BAD.values():
        (tmp_path / "mine.yaml").write_text(content)
        with pytest.raises(ConfigError) as caught:
            load_models(tmp_path, need_weights=True)
        assert not re.search("Input should|String should|Extra inputs|Field required|Value error", str(caught.value))


def test_both_endings_of_yaml_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeffname: one\nbackend: fake\n")
    (tmp_path / "b.yml").write_text("name: two\nbackend: fake\n")
    assert load_models(tmp_path).names() == ["one", "two"]
    (tmp_path / "c.yml").write_text("name: one\nbackend: fake\n")
    with pytest.raises(ConfigError, match="Two models are called 'one'"):
        load_models(tmp_path)


def test_a_model_is_found_by_name_and_alias(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: one\nbackend: fake\naliases: [uno, ein]\nstopwords: ['###']\n")
    catalog = load_models(tmp_path)
    assert catalog.names() == ["one"]
    found = catalog.get("ein")
    assert found is not None
    assert (found.name, found.backend, found.stopwords) == ("one", BackendKind.FAKE, ("###",))
    assert catalog.get("zwei") is None


def test_names_and_aliases_may_have_an_organisation(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: org/one-7B.Q4_K\nbackend: fake\naliases: [lab/team/uno]\n")
    catalog = load_models(tmp_path)
    assert catalog.names() == ["org/one-7B.Q4_K"]
    assert catalog.get("lab/team/uno") is catalog.get("org/one-7B.Q4_K")


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: one\nbackend: fake\n")
    (tmp_path / "b.yaml").write_text("name: two\nbackend: fake\naliases: [one]\n")
    with pytest.raises(ConfigError, match="one"):
        load_models(tmp_path)


def test_weights_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    (tmp_path / "a.yaml").write_text("name: one\nparameters: {model: w.gguf}\n")
    model = load_models(tmp_path).get("one")
    assert model is not None
    assert model.parameters.model == str((tmp_path / "w.gguf").resolve())


def test_adapters_are_found_beside_the_file_or_missed_by_name(tmp_path: Path) -> None:
    for name in ("w.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    text = "name: one\nparameters: {model: w.gguf}\nlora: [{path: a.gguf, scale: 0.5}, {path: a.gguf}]\n"
    (tmp_path / "a.yaml").write_text(text)
    model = load_models(tmp_path).models[0]
    assert has_weights(model)
    assert [(adapter.path, adapter.scale) for adapter in model.lora] == [
        (str((tmp_path / "a.gguf").resolve()), scale) for scale in (0.5, 1.0)
    ]
    (tmp_path / "a.gguf").unlink()
    with pytest.raises(ConfigError, match=r"a\.yaml, line 3: lora\.0\.path: there is no file"):
        load_models(tmp_path, need_weights=True)
    assert not has_weights(load_models(tmp_path).models[0])


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_need_no_quotes(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.yaml").write_text(f"name: one\nbackend: fake\nflash_attention: {word}\nspeculation: {word}\n")
    model = load_models(tmp_path).models[0]
    assert (model.flash_attention, model.speculation) == (word, word)


@pytest.mark.parametrize("word", ["on", "off", "auto", "true", "false"])
def test_speculation_is_a_switch_that_is_auto_unless_the_file_turns_it_on_or_off(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.yaml").write_text(f"name: one\nbackend: fake\nspeculation: {word}\n")
    assert load_models(tmp_path).models[0].speculation == {"true": "on", "false": "off"}.get(word, word)
    (tmp_path / "a.yaml").write_text("name: one\nbackend: fake\n")
    assert load_models(tmp_path).models[0].speculation == "auto"


def test_every_key_is_in_the_manual() -> None:
    table = {word for line in MANUAL.read_text().splitlines() if line[:1] == "|" for word in _code(line.split("|")[1])}
    keys = set(ModelConfig.model_fields) - {"parameters"}
    assert table == keys | {f"parameters.{name}" for name in Parameters.model_fields}


def _code(cell: str) -> list[str]:
    """Return the code words of a cell; `.name` follows a `parameters.` key."""
    return [f"parameters{word}" if word[0] == "." else word for word in re.findall(r"`([^`]+)`", cell)]


def test_a_key_has_a_description_that_is_the_operators_help() -> None:
    for name, field in ModelConfig.model_fields.items():
        assert field.description, name


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no models folder"):
        load_models(tmp_path / "nowhere")


def test_the_hash_of_a_file_changes_with_keys_that_change_answers_and_with_no_others() -> None:
    plain = ModelConfig(name="a", parameters=Parameters(model="a.gguf"))
    same = ModelConfig(name="b", parameters=Parameters(model="b.gguf"), slots=3, aliases=("c",))
    assert same.answers_hash == plain.answers_hash
    lazy = ModelConfig(name="a", load="lazy", memory_bytes=1, keep_alive_seconds=5)
    assert lazy.answers_hash == plain.answers_hash
    for other in (
        ModelConfig(name="a", chat_template="x"),
        ModelConfig(name="a", parameters=Parameters(temperature=0.5)),
        ModelConfig(name="a", context_size=512),
    ):
        assert other.answers_hash != plain.answers_hash


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("memory_bytes: lots", "memory_bytes 'lots' is not a size"),
        ("load: sometimes", "load "),
        ("keep_alive_seconds: 0", "keep_alive_seconds "),
        ("pinned: true\nload: lazy", "pinned: a pinned model is loaded at the start, so load must be eager"),
        ("pinned: true\nkeep_alive_seconds: 5", "keep_alive_seconds: a pinned model never leaves memory"),
    ],
)
def test_a_wrong_key_of_residency_is_named(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"name: a\nbackend: fake\n{lines}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_model(path)


def test_the_need_of_memory_is_a_size_with_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nbackend: fake\nmemory_bytes: 100MiB\nload: lazy\n")
    model = load_model(path)
    assert (model.memory_bytes, model.load) == (100 << 20, "lazy")


def test_every_part_of_split_weights_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nparameters: {model: big-00001-of-00002.gguf}\n")
    (tmp_path / "big-00001-of-00002.gguf").touch()
    with pytest.raises(ConfigError, match="there is no file .*big-00002-of-00002.gguf"):
        load_models(tmp_path, need_weights=True)
    assert not has_weights(load_models(tmp_path).models[0])
