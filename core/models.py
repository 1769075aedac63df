"""Served models: one YAML file each in the models folder, in LocalAI's spelling where one exists.

Knows files and names; what a model *does* is the engine's business. A bad file is an error that names the file and the key.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from core.errors import ConfigError

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,95}$"
Name = Annotated[str, Field(pattern=_NAME)]


class ModelBackend(StrEnum):
    """What generates: llama.cpp, or the deterministic stand-in for tests and benchmarks."""

    LLAMA = "llama"
    FAKE = "fake"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Parameters(_Strict):
    """Where the weights are, and what a request that says nothing gets."""

    model: str = Field("", description="Path of the GGUF file, absolute or beside the YAML file.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**32)


class ModelConfig(_Strict):
    """One model as its file describes it."""

    name: Name
    backend: ModelBackend = Field(ModelBackend.LLAMA, strict=False)
    parameters: Parameters = Parameters()
    context_size: int = Field(2048, ge=64, le=1 << 20, description="Tokens of prompt and answer together.")
    gpu_layers: int = Field(-1, ge=-1, description="Layers on the GPU; -1 is all of them, where there is one.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a decode; 0 is one per core.")
    slots: int | None = Field(None, ge=1, le=256, description="Sequences side by side; default: the setting `slots`.")
    batch_tokens: int = Field(2048, ge=32, le=65536, description="Most tokens in one step.")
    chat_template: str | None = Field(None, description="A Jinja template instead of the one in the GGUF.")
    stopwords: tuple[str, ...] = Field((), description="Strings that end every answer.")
    aliases: tuple[Name, ...] = Field((), description="Other names a request may use.")
    step_seconds: float = Field(0, ge=0, le=60, description="backend fake: time of one step.")

    @field_validator("stopwords", "aliases", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class ModelCatalog:
    """The models of a deployment by name and alias. Immutable; read once at the start of a process."""

    def __init__(self, models: list[ModelConfig]) -> None:
        self._by_name: dict[str, ModelConfig] = {}
        for model in models:
            for name in (model.name, *model.aliases):
                if name in self._by_name:
                    raise ConfigError(f"Two models are called {name!r}: {self._by_name[name].name} and {model.name}.")
                self._by_name[name] = model
        self.models = sorted(models, key=lambda model: model.name)

    def get(self, name: str) -> ModelConfig | None:
        """The model of this name or alias."""
        return self._by_name.get(name)

    def names(self) -> list[str]:
        """Names without aliases, sorted."""
        return [model.name for model in self.models]


def load_models(folder: Path) -> ModelCatalog:
    """Read every `*.yaml` of the folder; raises ConfigError naming the file and key that is wrong."""
    if not folder.is_dir():
        raise ConfigError(f"There is no models folder at {folder}. Set models_dir, or create it with a YAML file.")
    return ModelCatalog([load_model(path) for path in sorted(folder.glob("*.yaml"))])


def load_model(path: Path) -> ModelConfig:
    """Read one model file; a relative path of weights is taken from the file's own folder."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: a model file is a mapping of keys such as `name` and `parameters`.")
    try:
        model = ModelConfig.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path.name}: {wrong}") from None
    return _with_weights(model, path)


def _with_weights(model: ModelConfig, path: Path) -> ModelConfig:
    if model.backend is not ModelBackend.LLAMA:
        return model
    if not model.parameters.model:
        raise ConfigError(f"{path.name}: parameters.model: the path of the GGUF file is missing")
    weights = (path.parent / Path(model.parameters.model).expanduser()).resolve()
    if not weights.is_file():
        raise ConfigError(f"{path.name}: parameters.model: there is no file {weights}")
    return model.model_copy(update={"parameters": model.parameters.model_copy(update={"model": str(weights)})})
