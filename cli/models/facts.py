"""Facts of a model, from the header of its GGUF file: what it is, and whether it can be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.errors import CommandFailed
from core.field_errors import plain
from core.models.gguf.gguf_header import GgufHeader, GgufKind, read_gguf
from core.models.hf_folder import (
    FolderError,
    generates,
    has_chat_template,
    read_config,
    servable_architecture,
    tensor_counts,
)
from engine.layer_memory import model_memory

_RANKS: Final = 4  # `pooling_type` of a model that scores pairs of texts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a user wants to know of a model; texts are printable. `weights` is the header of its GGUF, or its folder."""

    weights: GgufHeader | Path
    architecture: str
    num_parameters: int
    quantization: str
    trained_context: int
    has_template: bool
    is_embedding: bool
    generates: bool

    def describe(self) -> str:
        """One line, such as `llama, 8.0 billion parameters, Q4_K_M, trained on 131,072 tokens, chat template`."""
        parts = [self.architecture, f"{_count(self.num_parameters)} parameters", self.quantization]
        if self.trained_context:
            parts.append(f"trained on {self.trained_context:,} tokens")
        if self.is_embedding:
            parts.append("embeddings")
        if self.generates:
            parts.append("chat template" if self.has_template else "no chat template")
        return ", ".join(part for part in parts if part)


def read_facts(path: Path) -> ModelFacts:
    """Read the header of a GGUF file. Raises GgufError, and CommandFailed for a file that is no model to serve."""
    header = read_gguf(path)
    _refuse(header, plain(path.name))
    has_layers = bool(model_memory(header).layers)
    pooling = header.integer("{}.pooling_type")
    return ModelFacts(
        weights=header,
        architecture=plain(header.architecture),
        num_parameters=header.num_parameters,
        quantization=header.quantization,
        trained_context=header.integer("{}.context_length"),
        has_template=bool(header.text("tokenizer.chat_template")),
        is_embedding=pooling > 0 or not has_layers,
        generates=has_layers,
    )


def read_folder_facts(folder: Path) -> ModelFacts:
    """Read the headers of a folder in the format of Hugging Face. Raises CommandFailed for one that cannot be served."""
    try:
        name = servable_architecture(folder)
        config, counts = read_config(folder), tensor_counts(folder)
    except FolderError as error:
        raise CommandFailed(f"{error}.") from None
    positions = config.get("max_position_embeddings")
    return ModelFacts(
        weights=folder,
        architecture=plain(str(config.get("model_type") or name)),
        num_parameters=sum(counts.values()),
        quantization=max(counts, key=lambda kind: counts[kind], default=""),
        trained_context=positions if isinstance(positions, int) and positions > 0 else 0,
        has_template=has_chat_template(folder),
        is_embedding=not generates(name) or (folder / "modules.json").is_file(),
        generates=generates(name),
    )


def _refuse(header: GgufHeader, name: str) -> None:
    match header.kind:
        case GgufKind.ADAPTER:
            base = plain(header.architecture) or "unknown"
            raise CommandFailed(
                f"{name} is a LoRA adapter, not a model: name it under `lora` in the model file of its base model "
                f"(architecture {base})."
            )
        case GgufKind.PROJECTOR:
            raise CommandFailed(
                f"{name} is the part of a model that reads images or sound (mmproj); add the model itself."
            )
        case GgufKind.IMPORTANCE_MATRIX:
            raise CommandFailed(
                f"{name} is an importance matrix, which helps to quantise a model; add the model itself."
            )
        case GgufKind.VOCABULARY:
            raise CommandFailed(f"{name} has a vocabulary and no weights, so it cannot be served.")
        case GgufKind.MODEL:
            pass
    if not header.architecture or not header.num_layers:
        raise CommandFailed(f"{name} is no language model: its metadata has no architecture, or no layers.")
    if header.integer("{}.pooling_type") == _RANKS:
        raise CommandFailed(f"{name} ranks texts, which Millrace does not serve.")


def _count(number: int) -> str:
    """A count of parameters for people, such as `8.0 billion`."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}" if number < 10 * unit else f"{number / unit:.0f} {name}"
    return f"{number:,}"
