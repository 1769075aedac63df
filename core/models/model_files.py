"""Model files: each served model has a YAML file in the models folder, with the key names of LocalAI where it has them.

An invalid file raises an error that names the file, the line and the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from core.devices.names import DeviceKind
from core.errors import ConfigError, Problem
from core.field_errors import describe, nearest
from core.memory_sizes import parse_bytes
from core.models import hf_folder
from core.models.capabilities import check_keys
from core.models.engine_options import BackendKind, KvLayout, KvType, Pooling, Switch
from core.models.fields import localai
from core.models.fields.backend_keys import UNKNOWN_CONTEXT, check_upstream, with_defaults
from core.models.fields.placement_fields import PlacementFields
from core.models.fields.routing_fields import RoutingFields, check_fallback, may_share, ranked
from core.models.fields.sampling import SamplingFields
from core.models.fields.transformers_fields import TransformersFields
from core.models.fields.upstream_fields import UpstreamEndpoint, UpstreamFields
from core.models.gguf.gguf_header import split_paths
from core.models.yaml_file import YamlFile

MAX_SLOTS: Final = 256
_MAX_NAMED: Final = 20
_MAX_SHOWN: Final = 96
_PART: Final = (
    r"[A-Za-z0-9][A-Za-z0-9._:-]*"  # an organisation, a model; never `..` or empty, so that paths stay inside
)
Name = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$", max_length=96)]


def _on_off(value: object) -> object:
    """Turn booleans back into `on` and `off`, which YAML reads as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _number_or_auto(value: object) -> object:
    """Give one message where a union would give one for each of its members."""
    if value is None or value == "auto" or (type(value) is int and 1 <= value <= MAX_SLOTS):
        return value
    raise ValueError(f"must be a whole number from 1 to {MAX_SLOTS}, or auto")


def _bytes(value: object) -> object:
    """Turn a size with a unit into bytes."""
    return parse_bytes(value) if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Parameters(SamplingFields, _Strict):
    """The weights, and the sampling parameters of requests that set none."""

    model: str = Field(
        "",
        description="Path of the GGUF file, absolute or beside the YAML file; of a folder, or hf:ORG/REPO, for transformers.",
    )
    seed: int | None = Field(None, ge=0, lt=2**32)


class Lora(_Strict):
    """A low-rank adapter that is applied to every request of the model."""

    path: str = Field(min_length=1, description="Path of the adapter's GGUF file, absolute or beside the YAML file.")
    scale: float = Field(1.0, ge=-100, le=100, description="Factor of the adapter; 1 as it was trained.")


UPSTREAM_DEFAULTS: Final[tuple[UpstreamEndpoint, ...]] = ("chat", "completions")
_OF_OTHERS: Final = {
    "n_ctx": "context_size",
    "max_model_len": "context_size",
    "parallel": "slots",
    "n_parallel": "slots",
    "api_base": "base_url",
    "api_url": "base_url",
    "url": "base_url",
    "api_key": "api_key_env",
}
_NOT_OF_ANSWERS: Final[dict[str, Any]] = {  # Any: as pydantic wants it
    "name": True,
    "aliases": True,
    "parameters": {"model"},  # the weights have a hash of their own
    "embeddings": True,
    "slots": True,
    "spare_slots": True,
    "replicas": True,
    "devices": True,
    "split_mode": True,
    "tensor_split": True,
    "fallback": True,
    "weight": True,
    "load": True,
    "keep_alive_seconds": True,
    "pinned": True,
    "memory_bytes": True,
    "step_seconds": True,
    "load_seconds": True,
    "base_url": True,
    "model": True,
    "api_key_env": True,
    "headers": True,
    "timeout_seconds": True,
    "max_concurrency": True,
    "endpoints": True,
    "command": True,
    "port": True,
    "health_path": True,
    "ready_seconds": True,
    "device": True,
}


class ModelConfig(UpstreamFields, TransformersFields, PlacementFields, RoutingFields, _Strict):
    """A model file."""

    name: Name = Field(description="Name of the model in requests; it may have an organisation: `org/name`.")
    aliases: tuple[Name, ...] = Field((), description="Other names a request may use.")
    backend: BackendKind = Field(
        BackendKind.LLAMA, strict=False, description="llama, transformers, openai, or fake for tests."
    )
    parameters: Parameters = Field(
        Parameters(), description="The weights, and sampling parameters for requests that set none."
    )
    lora: tuple[Lora, ...] = Field((), description="Adapters: a list of `path` and `scale`.")
    chat_template: str | None = Field(None, description="A Jinja template instead of the one in the GGUF.")
    stopwords: tuple[str, ...] = Field((), description="Strings that end every answer.")
    context_size: int = Field(
        2048, ge=64, le=1 << 20, description="Tokens of prompt and answer together, for each sequence."
    )
    context_shift: bool = Field(
        False, description="Drop the oldest tokens of a full context instead of ending the answer."
    )
    embeddings: bool = Field(False, description="Serve embeddings of this model.")
    pooling: Pooling = Field(
        Pooling.AUTO, strict=False, description="Way to make one embedding of all tokens: auto, mean, cls or last."
    )

    slots: Annotated[int | Literal["auto"] | None, BeforeValidator(_number_or_auto)] = Field(
        None,
        description="Sequences side by side; auto: the fastest number on the device, as far as memory holds them; "
        "default: the setting `slots`.",
    )
    spare_slots: int | None = Field(
        None, ge=0, le=MAX_SLOTS, description="Slots for paused and idle sequences; default: the engine chooses."
    )
    gpu_layers: int = Field(-1, ge=-1, description="Layers on the GPU; -1 is all, if there is a GPU.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a decode; 0 is one per usable core.")
    threads_batch: int = Field(
        0, ge=0, le=1024, description="CPU threads that compute prompts; 0 is the value of `threads`."
    )
    batch_tokens: int = Field(2048, ge=32, le=65536, description="Maximum of tokens in a step.")
    ubatch_tokens: int = Field(
        512, ge=32, le=65536, description="Maximum of tokens that the device computes at a time; default: measured."
    )
    prefill_tokens: int = Field(
        512, ge=1, le=65536, description="Maximum of prompt tokens in a step, which limits its time."
    )
    kv_layout: KvLayout = Field(
        KvLayout.AUTO,
        strict=False,
        description="unified: one memory that all slots share; split: one stream per slot; auto: the faster one.",
    )
    cache_type_k: KvType = Field(
        KvType.F16, strict=False, description="Format of keys: f32, f16, q8_0, q5_1, q5_0, q4_1 or q4_0."
    )
    cache_type_v: KvType = Field(
        KvType.F16, strict=False, description="Format of values; a quantised one needs flash attention."
    )
    flash_attention: Annotated[Switch, BeforeValidator(_on_off)] = Field(
        Switch.AUTO, strict=False, description="on, off, or auto: the faster one."
    )
    speculation: Annotated[Switch, BeforeValidator(_on_off)] = Field(
        Switch.AUTO,
        strict=False,
        description="Draft tokens that occurred before: auto where measured steps say that it pays, on while at most two "
        "sequences decode, or off.",
    )
    jump_forward: bool = Field(True, description="Append tokens that a constraint forces without sampling.")
    load: Literal["eager", "lazy"] = Field(
        "eager",
        description="eager: loaded at the start, in order of name, while memory lasts; lazy: at the first request.",
    )
    keep_alive_seconds: float | None = Field(
        None, gt=0, description="Seconds without a request after which the model leaves memory; default: it stays."
    )
    pinned: bool = Field(False, description="Load the model at the start, and never unload it for another one.")
    memory_bytes: Annotated[int | None, BeforeValidator(_bytes)] = Field(
        None, ge=0, description="Memory that the model needs, such as 900MiB; default: estimated from its file."
    )

    step_seconds: float = Field(0, ge=0, le=60, description="Seconds of a step of the backend fake.")
    load_seconds: float = Field(0, ge=0, le=60, description="Seconds that the backend fake takes to load.")

    @cached_property
    def answers_hash(self) -> str:
        """Hash of all keys that may change an answer: template, parameters, adapters, context, KV layout and formats."""
        keys = self.model_dump_json(exclude=_NOT_OF_ANSWERS)
        return hashlib.sha256(f"{keys}{self.upstream_model or ''}".encode()).hexdigest()

    @property
    def upstream_model(self) -> str | None:
        """The name of the model at its server; None for a backend that computes by itself."""
        return (self.model or self.parameters.model or self.name) if self.backend is BackendKind.OPENAI else None

    @property
    def weights(self) -> str:
        """The file or folder that the engine reads; empty where a server has it."""
        return "" if self.backend is BackendKind.OPENAI else self.parameters.model

    @property
    def known_context(self) -> int | None:
        """`context_size`; None for a server whose limit the file does not state."""
        is_unknown = self.backend is BackendKind.OPENAI and self.context_size == UNKNOWN_CONTEXT
        return None if is_unknown else self.context_size

    def planned_slots(self, default: int | Literal["auto"]) -> int | None:
        """Requests side by side before an engine has reported them; None where the engine finds the number."""
        chosen = self.max_concurrency if self.backend is BackendKind.OPENAI else self.slots or default
        return None if chosen == "auto" else chosen

    def serves(self, endpoint: UpstreamEndpoint) -> bool:
        """Does the model answer at this endpoint?"""
        if self.backend is BackendKind.OPENAI:
            return endpoint in (self.endpoints or UPSTREAM_DEFAULTS)
        return self.embeddings or endpoint != "embeddings"

    @model_validator(mode="before")
    @classmethod
    def _backend_has_defaults(cls, values: Any) -> Any:  # Any: YAML
        is_upstream = isinstance(values, dict) and values.get("backend") == BackendKind.OPENAI
        return with_defaults(values) if is_upstream else values

    @field_validator("stopwords", "aliases", "lora", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        check_keys(self.backend, _given(self))
        if len({self.name, *self.aliases}) <= len(self.aliases):
            raise ValueError("aliases: must differ from each other and from the name")
        check_fallback(self.name, self.aliases, self.fallback)
        if self.backend is BackendKind.OPENAI:
            check_upstream({**dict(self), "parameters.model": self.parameters.model})
        if self.cache_type_v.startswith("q") and self.flash_attention is Switch.OFF:
            raise ValueError("cache_type_v: quantised values need flash_attention to be auto or on")
        if self.context_shift and self.kv_layout is KvLayout.UNIFIED:
            raise ValueError(
                "context_shift: needs kv_layout to be auto or split: in unified memory, a shift would move what others share"
            )
        if self.pinned and self.load == "lazy":
            raise ValueError("pinned: a pinned model is loaded at the start, so load must be eager")
        if self.pinned and self.keep_alive_seconds is not None:
            raise ValueError("keep_alive_seconds: a pinned model never leaves memory; remove one of the two keys")
        if not self.gpu_layers and any(not name.startswith(DeviceKind.CPU) for name in self.devices):
            raise ValueError("gpu_layers: 0 keeps the model on the CPU, but devices names a GPU")
        if self.pooling is not Pooling.AUTO and not self.embeddings:
            raise ValueError("pooling: is set, but embeddings is false")
        return self


def _given(model: ModelConfig) -> Iterator[str]:
    """The keys whose values differ from the defaults; those of the parameters begin with `parameters.`."""
    for prefix, values in (("", model), ("parameters.", model.parameters)):
        for key, field in type(values).model_fields.items():
            if key != "parameters" and getattr(values, key) != field.default:
                yield prefix + key


class ModelCatalog:
    """The models of a deployment by name and alias. Immutable; `LiveCatalog` has the present one."""

    def __init__(self, models: list[ModelConfig]) -> None:
        self._by_name: dict[str, tuple[ModelConfig, ...]] = {}
        for model in models:
            for name in (model.name, *model.aliases):
                others = self._by_name.get(name, ())
                if others and not may_share(name, (*others, model)):
                    raise ConfigError(f"Two models are called {name!r}: {others[0].name} and {model.name}.")
                self._by_name[name] = (*others, model)
        self.models = sorted(models, key=lambda model: model.name)

    def get(self, name: str) -> ModelConfig | None:
        """Return the model with this name or alias; of those that share an alias, the first."""
        return next(iter(self.called(name)), None)

    def called(self, name: str) -> tuple[ModelConfig, ...]:
        """Return the models with this name or alias: several share an alias, none is unknown."""
        return self._by_name.get(name, ())

    def pick(self, name: str, key: str, down: Container[str] = ()) -> ModelConfig | None:
        """Return the model for this name or alias, and of those that share it the one whose turn the key is.

        Models named in `down` are left out, unless all are.
        """
        called = self.called(name)
        turns = ranked(called, key) if len(called) > 1 else called
        return next((model for model in turns if model.name not in down), next(iter(turns), None))

    def fallbacks(self, model: ModelConfig, key: str) -> list[ModelConfig]:
        """Return the models that may answer in place of one: its fallbacks, each followed by its own, without repetition."""
        found: dict[str, ModelConfig] = {model.name: model}

        def add(each: ModelConfig) -> None:
            for name in each.fallback:
                for other in ranked(self.called(name), key):
                    if other.name not in found:
                        found[other.name] = other
                        add(other)

        add(model)
        return list(found.values())[1:]

    def similar(self, name: str) -> str:
        """Return `; did you mean 'X'?` for the most similar name or alias; empty where none is similar."""
        return nearest(name[:_MAX_SHOWN], self._by_name)

    def only(self, names: Collection[str] | None) -> ModelCatalog:
        """Return a catalog of the models with these names or aliases; None is all."""
        if names is None:
            return self
        return ModelCatalog([model for model in self.models if {model.name, *model.aliases} & set(names)])

    def names(self) -> list[str]:
        """Return the names without aliases, sorted."""
        return [model.name for model in self.models]


def unknown_model(name: str, catalog: ModelCatalog) -> Problem:
    """The 404 for a model that is not in the catalog; it names the most similar one, and those that are."""
    names = catalog.names()
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    message = f"The model '{name[:_MAX_SHOWN]}' does not exist here{catalog.similar(name) or '.'}"
    message += f" Served models: {', '.join(names[:_MAX_NAMED]) or 'none'}{more}."
    return Problem(status=404, message=message, code="model_not_found", param="model")


def load_model(path: Path, *, need_weights: bool = False) -> ModelConfig:
    """Load a model file; relative paths of weights start at its folder."""
    file = YamlFile(path)
    try:
        model = ModelConfig.model_validate(localai.translate(file.values))
    except localai.Refused as refused:
        raise ConfigError(f"{file.place(refused.keys)}: {'.'.join(map(str, refused.keys))}: {refused}.") from None
    except ValidationError as error:
        raise ConfigError(" ".join(_describe(file, each) for each in error.errors())) from None
    return _with_files(model, file, path.parent, need_weights)


def has_weights(model: ModelConfig) -> bool:
    """Do all files exist that its engine reads? What it downloads by itself counts as there."""
    if model.backend is BackendKind.TRANSFORMERS and not hf_folder.is_hub_name(model.parameters.model):
        return bool(weight_paths(model))
    return model.backend is not BackendKind.LLAMA or all(path.is_file() for path in weight_paths(model))


def weight_paths(model: ModelConfig) -> list[Path]:
    """The files of a model's weights and adapters, whether they exist or not; of a folder, those that decide its answers."""
    match model.backend:
        case BackendKind.LLAMA if model.parameters.model:
            return [*split_paths(Path(model.parameters.model)), *(Path(adapter.path) for adapter in model.lora)]
        case BackendKind.TRANSFORMERS:
            folder = hf_folder.find_folder(model.parameters.model)
            return hf_folder.answer_files(folder) if folder is not None and hf_folder.is_whole(folder) else []
    return []


def _describe(file: YamlFile, error: ErrorDetails) -> str:
    """Return `FILE, line N: key … .` for one error; an error about several keys names them itself."""
    keys = error["loc"]
    name = ".".join(map(str, keys))
    if error["type"] == "extra_forbidden":
        return f"{file.place(keys)}: there is no key {name!r}{_similar(keys)}"
    text = describe(error)
    if error["type"] == "value_error" and keys:
        return f"{file.place(keys)}: {name} {text}."
    if not keys:
        return f"{file.place(tuple(text.partition(':')[0].split('.')))}: {text}."
    return f"{file.place(keys)}: {name} {text}."


def _similar(keys: tuple[int | str, ...]) -> str:
    """Return a question about the key that was meant, or where keys are described."""
    schemas: dict[str, type[BaseModel]] = {"parameters": Parameters, "lora": Lora}
    key, beside = str(keys[-1]), (schemas[str(keys[0])] if len(keys) > 1 else ModelConfig).model_fields
    if len(keys) == 1 and key in Parameters.model_fields:
        return f"; did you mean 'parameters.{key}'?"
    return nearest(_OF_OTHERS.get(key, key), beside) or ". docs/models.md lists the keys."


def _with_files(model: ModelConfig, file: YamlFile, folder: Path, need_weights: bool) -> ModelConfig:
    """Return the model with absolute paths of weights and adapters; with `need_weights`, all of them exist."""
    if model.backend is BackendKind.TRANSFORMERS:
        return _with_folder(model, file, folder, need_weights)
    if model.backend is not BackendKind.LLAMA:
        return model
    if not model.parameters.model:
        place = file.place(("parameters",))
        raise ConfigError(f"{place}: parameters.model is missing. Write `parameters: {{model: FILE.gguf}}`.")

    def found(keys: tuple[str | int, ...], name: str) -> str:
        try:
            weights = (folder / Path(name).expanduser()).resolve()
        except (RuntimeError, OSError, ValueError):  # no such user, a circle of links, a null character
            raise ConfigError(
                f"{file.place(keys)}: {'.'.join(map(str, keys))}: {name!r} is no path of a file."
            ) from None
        missing = next((path for path in split_paths(weights) if not path.is_file()), None)
        if weights.is_dir() or hf_folder.is_hub_name(name):
            place = f"{file.place(keys)}: {'.'.join(map(str, keys))}"
            raise ConfigError(
                f"{place}: {name} is no GGUF file. A folder of Hugging Face needs `backend: transformers`."
            )
        if need_weights and missing is not None:
            raise ConfigError(f"{file.place(keys)}: {'.'.join(map(str, keys))}: there is no file {missing}")
        return str(weights)

    weights = found(("parameters", "model"), model.parameters.model)
    lora = tuple(
        adapter.model_copy(update={"path": found(("lora", index, "path"), adapter.path)})
        for index, adapter in enumerate(model.lora)
    )
    parameters = model.parameters.model_copy(update={"model": weights})
    return model.model_copy(update={"parameters": parameters, "lora": lora})


def _with_folder(model: ModelConfig, file: YamlFile, folder: Path, need_weights: bool) -> ModelConfig:
    """Return the model with the absolute path of its folder; with `need_weights`, it and the extra's packages are there."""
    place, name = file.place(("parameters", "model")), model.parameters.model
    if not name:
        place = file.place(("parameters",))
        raise ConfigError(
            f"{place}: parameters.model is missing. Write `parameters: {{model: FOLDER}}`, or `hf:ORG/REPO`."
        )
    if need_weights and (missing := hf_folder.missing_packages()):
        place = file.place(("backend",))
        raise ConfigError(f"{place}: backend: transformers needs {' and '.join(missing)}. {hf_folder.INSTALL}")
    if hf_folder.is_hub_name(name):
        if not hf_folder.is_valid_hub_name(name):
            raise ConfigError(f"{place}: parameters.model: {name!r} is no repository: write hf:ORG/REPO.")
        return model
    try:
        path = (folder / Path(name).expanduser()).resolve()
        if need_weights:
            hf_folder.check_folder(path)
    except hf_folder.FolderError as error:
        raise ConfigError(f"{place}: parameters.model: {error}.") from None
    except (RuntimeError, OSError, ValueError):  # no such user, a circle of links, a null character
        raise ConfigError(f"{place}: parameters.model: {name!r} is no path of a folder.") from None
    return model.model_copy(update={"parameters": model.parameters.model_copy(update={"model": str(path)})})
