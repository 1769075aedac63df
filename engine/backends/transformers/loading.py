"""Loads the weights of a folder, and refuses by name what the lanes of the decoder cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from engine.backends.transformers.attention import NAME
from engine.config import TransformersConfig
from engine.errors import ModelFailed

_FULL, _SLIDING = "full_attention", "sliding_attention"
_UNUSED: Final = "pooler."  # a layer of encoders behind the vectors of tokens, which many folders lack
_OWN_CODE: Final = "trust_remote_code"


def load_decoder(folder: Path, architecture: str, options: TransformersConfig) -> Any:  # Any: a model of transformers
    """Load a model that generates, with attention over lanes; raises ModelFailed."""
    if options.attention != "auto":
        raise ModelFailed(
            f"attention: {options.attention} is for models that only embed; {architecture} generates text."
        )
    with _failures(folder, architecture):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
        text_config = config.get_text_config(decoder=True)
        layer_windows(text_config, architecture)  # before the weights, which take longer
        model = _load(AutoModelForCausalLM, folder, config=config, **_arguments(options))
        if not model._supports_attention_backend:
            raise ModelFailed(
                f"{architecture} computes attention in code of its own, which the backend transformers cannot use. "
                "Convert it to GGUF and use `backend: llama`."
            )
        model.set_attn_implementation(NAME)
        return model.to(options.device).eval()


def load_encoder(folder: Path, architecture: str, options: TransformersConfig) -> Any:  # Any: a model of transformers
    """Load a model that gives a vector for each token; raises ModelFailed."""
    arguments = _arguments(options)
    if options.attention != "auto":
        arguments["attn_implementation"] = options.attention
    with _failures(folder, architecture):
        return _load(AutoModel, folder, **arguments).to(options.device).eval()


def layer_windows(config: Any, architecture: str) -> dict[int, int]:  # Any: a configuration of transformers
    """The window of each layer that looks back a limited number of tokens; raises ModelFailed for a layer of another kind."""
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelFailed(f"{architecture} attends to later tokens, so it cannot generate.")
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return dict.fromkeys(range(config.num_hidden_layers), window) if window else {}
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise ModelFailed(
                f"{architecture} has layers of {kind}, whose state is not the keys and values of tokens. "
                "Convert it to GGUF and use `backend: llama`."
            )
    return {layer: window for layer, kind in enumerate(kinds) if kind == _SLIDING and window}


def _load(
    loader: Any, folder: Path, **arguments: Any
) -> Any:  # Any: classes of transformers, arguments of several types
    """Load a model. Raises ModelFailed where weights are missing, to which the library would give random values."""
    model, loaded = loader.from_pretrained(folder, output_loading_info=True, **arguments)
    missing = sorted(name for name in loaded["missing_keys"] if _UNUSED not in name)
    if missing:
        raise ModelFailed(f"The weights of {folder} have no values for {missing[0]} and {len(missing) - 1} others.")
    return model


def _arguments(options: TransformersConfig) -> dict[str, Any]:  # Any: arguments of several types
    return {
        "dtype": options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
        "trust_remote_code": options.trust_remote_code,
        "use_safetensors": True,
    }


@contextmanager
def _failures(folder: Path, architecture: str) -> Iterator[None]:
    """Turn whatever transformers raises for this folder into one sentence."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except ModelFailed:
        raise
    except torch.OutOfMemoryError:
        raise ModelFailed(f"The device has not enough memory for the weights of {folder}.") from None
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if _OWN_CODE in str(error):
            message = (
                "it brings Python code of its own, which runs only with `trust_remote_code: true` in the model file"
            )
        raise ModelFailed(f"transformers cannot load {folder} ({architecture}): {message}") from None
