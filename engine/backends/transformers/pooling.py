"""The pooling of a folder: the way from the vectors of tokens to one of a text, as its authors trained it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch

from engine.backends.transformers.folder import read_json
from engine.config import Pooling
from engine.errors import ModelFailed

_KEYS: Final = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}
_NAMES: Final = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}
_MODULES_OF_OURS: Final = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, by the end of their type


def resolve_pooling(folder: Path, configured: Pooling, *, is_causal: bool) -> Pooling:
    """The configured pooling, else that of the folder, else the last token of a decoder and the mean of an encoder.

    Raises ModelFailed where the folder has further layers after its pooling.
    """
    if configured is not Pooling.AUTO:
        return configured
    path = _check_modules(folder)
    settings = read_json(path / "config.json")
    name = settings.get("pooling_mode")
    kinds = [kind for key, kind in _KEYS.items() if settings.get(key)] if name is None else [_NAMES.get(str(name))]
    if settings and (len(kinds) != 1 or kinds[0] is None):
        raise ModelFailed(f"{path} pools in a way that is not supported: set `pooling` to mean, cls or last.")
    if settings and kinds[0] is not None:
        return kinds[0]
    return Pooling.LAST if is_causal else Pooling.MEAN


def pool(vectors: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool the vectors of all tokens, (tokens, numbers), of texts of these lengths behind each other, to (texts, numbers)."""
    ends = lengths.cumsum(0)
    if pooling is Pooling.CLS:
        return vectors[ends - lengths]
    if pooling is Pooling.LAST:
        return vectors[ends - 1]
    owners = torch.arange(len(lengths), device=vectors.device).repeat_interleave(lengths)
    return vectors.new_zeros((len(lengths), vectors.shape[1])).index_add_(0, owners, vectors) / lengths[:, None]


def _check_modules(folder: Path) -> Path:
    """Return the folder of the pooling module."""
    try:
        modules = json.loads((folder / "modules.json").read_text())
        found = {str(module["type"]).rpartition(".")[2]: folder / str(module["path"]) for module in modules}
    except FileNotFoundError:
        return folder / "1_Pooling"
    except (OSError, ValueError, TypeError, KeyError):
        raise ModelFailed(f"{folder / 'modules.json'} cannot be read.") from None
    if others := sorted(set(found) - set(_MODULES_OF_OURS)):
        raise ModelFailed(
            f"{folder} has a layer {others[0]} after its pooling, which is not supported. "
            "Set `pooling` to serve the vectors before it."
        )
    return found.get("Pooling", folder / "1_Pooling")
