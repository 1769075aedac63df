"""The transformers backend: loads a folder with its tokenizer, decoder and embedder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from llguidance import LLTokenizer

from core.models.hf_folder import generates
from engine.backends.base import Decoder
from engine.backends.embeddings_only import EmbeddingsOnly
from engine.backends.transformers.attention import ShapeProbe
from engine.backends.transformers.decoder import TransformersDecoder
from engine.backends.transformers.embedder import TransformersEmbedder
from engine.backends.transformers.folder import folder_architecture, resolve_folder
from engine.backends.transformers.groups import Tokens
from engine.backends.transformers.lanes import LaneShape
from engine.backends.transformers.loading import layer_windows, load_decoder, load_encoder
from engine.backends.transformers.memory import resolve_slots
from engine.backends.transformers.pooling import resolve_pooling
from engine.backends.transformers.tokenizer import FolderTokenizer
from engine.config import EngineConfig, TransformersConfig
from engine.errors import ModelFailed

_CHECKED_TOKENS: Final = 12
_LARGEST_DIFFERENCE: Final = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}  # of logits, by size


class TransformersBackend:
    """A loaded folder; raises ModelFailed when it cannot be used."""

    lab = None

    def __init__(self, config: EngineConfig) -> None:
        options = config.transformers or TransformersConfig()
        folder = resolve_folder(config.model_path)
        name = folder_architecture(folder)
        config = msgspec.structs.replace(config, threads=config.threads or len(os.sched_getaffinity(0)))
        torch.set_num_threads(config.threads)
        self.tokenizer = FolderTokenizer(folder, trust_remote_code=options.trust_remote_code)
        self.embedder: TransformersEmbedder | None = None
        self.decoder: Decoder
        if generates(name):
            self._load_decoder(folder, name, config, options)
        elif config.embeddings:
            model = load_encoder(folder, name, options)
            self.embedder = self._new_embedder(model, folder, config, None)
            self.decoder = EmbeddingsOnly()
        else:
            raise ModelFailed(f"{name} makes embeddings and no text. Set `embeddings: true` in its model file.")

    def grammar_tokenizer(self) -> LLTokenizer:
        return self.tokenizer.grammar_tokenizer()

    def _load_decoder(self, folder: Path, name: str, config: EngineConfig, options: TransformersConfig) -> None:
        model = load_decoder(folder, name, options)
        windows = layer_windows(model.config.get_text_config(decoder=True), name)
        shapes = _layer_shapes(model, name)
        config = msgspec.structs.replace(config, slots=resolve_slots(shapes, config, model.device))
        self.decoder = decoder = TransformersDecoder(model, self.tokenizer, config, shapes, windows)
        _check_positions(decoder, config.context_size, name)
        _check_lanes(decoder, model, name, self.tokenizer.num_vocab)
        if config.embeddings:
            self.embedder = self._new_embedder(model.base_model, folder, config, windows)

    def _new_embedder(
        self, model: Any, folder: Path, config: EngineConfig, windows: dict[int, int] | None
    ) -> TransformersEmbedder:  # Any: a model of transformers
        return TransformersEmbedder(
            model,
            config,
            pooling=resolve_pooling(folder, config.pooling, is_causal=windows is not None),
            longest_input=self.tokenizer.longest_input,
            first_position=self.tokenizer.first_position,
            windows=windows,
        )


def _layer_shapes(model: Any, name: str) -> list[LaneShape]:  # Any: a model of transformers
    """The shapes of keys and values, seen in a first forward of one token."""
    probe = ShapeProbe()
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0]], device=model.device), use_cache=False, lanes=probe)
    except Exception as error:
        raise _unsupported(name) from error
    if sorted(probe.shapes) != list(range(len(probe.shapes))) or not probe.shapes:
        raise _unsupported(name)
    return [probe.shapes[layer] for layer in range(len(probe.shapes))]


def _check_lanes(decoder: TransformersDecoder, model: Any, name: str, num_vocab: int) -> None:
    """Compare the logits of lanes with those of the library's own attention; raises ModelFailed where they differ.

    A model whose attention has something of its own would otherwise answer, and wrongly.
    """
    tokens = [(7 * number + 1) % num_vocab for number in range(_CHECKED_TOKENS)]
    half = _CHECKED_TOKENS // 2
    decoder.forward([Tokens(0, 0, tokens[:half], 0)])
    found = decoder.forward([Tokens(0, half, tokens[half:], 1)])[0]
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=model.device)
            expected = model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu().numpy()
    finally:
        model.set_attn_implementation(own)
    scale = max(1.0, float(np.abs(expected).max()))
    if not np.abs(found - expected).max() <= _LARGEST_DIFFERENCE.get(model.dtype, 0.3) * scale:
        raise _unsupported(name)


def _check_positions(decoder: TransformersDecoder, context_size: int, name: str) -> None:
    """Compute a token at the first and at the last position; some models have a row of weights for each position."""
    for position in (0, context_size - 1):
        try:
            decoder.forward([Tokens(0, position, [0], 1)])
        except IndexError:
            raise ModelFailed(f"{name} has no position {position}. Lower `context_size` in the model file.") from None
        except Exception as error:
            raise _unsupported(name) from error


def _unsupported(name: str) -> ModelFailed:
    return ModelFailed(
        f"{name} computes attention in a way that the backend transformers does not have. "
        "Convert it to GGUF and use `backend: llama`."
    )
