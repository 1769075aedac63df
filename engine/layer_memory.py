"""The memory of a sequence by layer: numbers of keys and values per token, windows, and recurrent states.

Derived from the metadata and the tensor names of a GGUF file, so that hybrid models need no table of their layers. Source:
`llama-hparams.cpp`, `create_memory` in `llama-model.cpp` and `models/*.cpp` of llama.cpp; tests compare with the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.models.gguf.gguf_header import GgufHeader

_ENCODERS: Final = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "wavtokenizer-dec",
        "gemma-embedding",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
    ]
)
# Every Nth layer attends to all tokens, unless the file has a pattern of its own: the last of N, or the first.
_LAST_OF: Final = {
    "gpt-oss": 2, "gemma2": 2, "gemma3n": 5, "gemma3": 6, "plamo3": 8,
    **dict.fromkeys(["afmoe", "cohere2", "exaone-moe", "exaone4", "llama4", "mellum", "muse-glimmer", "olmo2"], 4),
}  # fmt: skip
_FIRST_OF: Final = dict.fromkeys(("cohere2moe", "laguna", "smallthinker"), 4)
_OWN_PATTERN: Final = frozenset(
    ["gemma4", "granite-swa", "maple", "mimo2", "spark2-5", "step35", "dots3note", "dflash"]
)
_ALL_ATTENTION: Final = frozenset(("lfm2", "lfm2moe"))
_GEMMA2_WINDOW: Final = 4096
_LLAMA4_WINDOW: Final = 8192
_EXAONE4_WITH_WINDOW: Final = 64  # layers
_GEMMA3N_KV_LAYERS: Final = 20
_RECURRENT: Final = ("ssm_", "shortconv.", "time_mix_")
_KEYS: Final = ("attn_k.", "attn_kv_a_mqa.", "attn_k_b.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """Numbers of keys and values per token, in a window or of all tokens; numbers of a state per sequence, as F32."""

    keys: int = 0
    values: int = 0
    is_windowed: bool = False
    state: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """The layers that keep something between steps; an encoder has none. `window`: tokens that windowed layers attend to."""

    layers: tuple[LayerMemory, ...]
    window: int = 0


def model_memory(header: GgufHeader) -> ModelMemory:
    """Derive the memory of a model; raises GgufError for values that no model has."""
    if header.architecture in _ENCODERS:
        return ModelMemory(layers=())
    window = _window(header)
    num_layers = header.num_layers - header.integer("{}.nextn_predict_layers", 0, most=header.num_layers)
    windowed = _windowed(header) if window else [False] * header.num_layers
    heads = header.per_layer("{}.attention.head_count", 0)
    kv_heads = (
        header.per_layer("{}.attention.head_count_kv", 0) if header.value("{}.attention.head_count_kv") else heads
    )
    key, value = (_head_length(header, name, heads) for name in ("key", "value"))
    is_mla = bool(header.integer("{}.attention.key_length_mla"))
    indexer = header.integer("{}.attention.indexer.key_length")
    names = _names_by_layer(header)
    state = _state(header, max(heads, default=0))
    layers = []
    for layer in range(num_layers):
        is_recurrent = any(name.startswith(_RECURRENT) for name in names[layer])
        has_keys = kv_heads[layer] > 0 and layer < _num_kv_layers(header)
        if is_recurrent:  # such a layer of Falcon-H1 attends as well; one of Qwen3-Next has `attn_qkv` for its state
            has_keys &= any(name.startswith(_KEYS) for name in names[layer])
        suffix = "_swa" if windowed[layer] else ""
        layers.append(
            LayerMemory(
                keys=has_keys * (kv_heads[layer] * key[suffix] + indexer),
                values=has_keys * (not is_mla) * kv_heads[layer] * value[suffix],
                is_windowed=windowed[layer],
                state=is_recurrent * state,
            )
        )
    return ModelMemory(layers=tuple(layers), window=window)


def _window(header: GgufHeader) -> int:
    """Tokens of the window; 0 where llama.cpp uses none."""
    architecture = header.architecture
    if architecture not in {*_LAST_OF, *_FIRST_OF, *_OWN_PATTERN, *_ALL_ATTENTION}:
        return 0
    if architecture == "exaone4" and header.num_layers != _EXAONE4_WITH_WINDOW:
        return 0
    otherwise = _GEMMA2_WINDOW if architecture in ("gemma2", "exaone4") else 0
    window = header.integer("{}.attention.sliding_window", otherwise)
    if architecture == "llama4":
        return _LLAMA4_WINDOW if window or header.value("{}.attention.sliding_window") is None else 0
    return window


def _windowed(header: GgufHeader) -> list[bool]:
    """Does a layer attend to a window only?"""
    layers, architecture = range(header.num_layers), header.architecture
    if architecture in _ALL_ATTENTION:
        return [True for _ in layers]
    key = "{}.attention.sliding_window_pattern"
    if isinstance(header.value(key), tuple):
        return [flag > 0 for flag in header.per_layer(key, most=1)]
    first = _FIRST_OF.get(architecture, 0)
    period = header.integer(key, first or _LAST_OF.get(architecture, 1), most=header.num_layers)
    if period == 0:
        return [True for _ in layers]
    full = 0 if first else period - 1
    return [layer % period != full for layer in layers]


def _head_length(header: GgufHeader, name: str, heads: list[int]) -> dict[str, int]:
    """Numbers of a head's key or value, of layers that attend to all tokens and, under `_swa`, to a window."""
    if not heads or not heads[0]:
        return {"": 0, "_swa": 0}
    usual = header.integer("{}.embedding_length") // heads[0]
    full = header.integer(f"{{}}.attention.{name}_length", usual)
    return {"": full, "_swa": header.integer(f"{{}}.attention.{name}_length_swa", full)}


def _num_kv_layers(header: GgufHeader) -> int:
    """The first layers, which have keys and values of their own; later ones of some models use those of earlier ones."""
    if header.architecture == "gemma3n":
        return _GEMMA3N_KV_LAYERS
    return header.num_layers - header.integer("{}.attention.shared_kv_layers", 0, most=header.num_layers)


def _state(header: GgufHeader, heads: int) -> int:
    """Numbers of the state of a recurrent layer: the last inputs of its convolution, and the state itself."""
    width = header.integer("{}.embedding_length")
    kernel = max(0, header.integer("{}.ssm.conv_kernel") - 1)
    if head := header.integer("{}.wkv.head_size"):
        return width * (header.integer("{}.token_shift_count", 2) + head)
    if cache := header.integer("{}.shortconv.l_cache"):
        return width * (cache - 1)
    if head := header.integer("{}.kda.head_dim"):
        return 3 * (kernel or 3) * heads * head + head * head * heads
    inner, state = header.integer("{}.ssm.inner_size"), header.integer("{}.ssm.state_size")
    return kernel * (inner + 2 * header.integer("{}.ssm.group_count") * state) + state * inner


def _names_by_layer(header: GgufHeader) -> list[set[str]]:
    """Names of the tensors of each layer, without their prefix `blk.N.`."""
    names: list[set[str]] = [set() for _ in range(header.num_layers)]
    for tensor in header.tensors:
        prefix, _, rest = tensor.name.partition(".")
        number, _, name = rest.partition(".")
        if prefix == "blk" and number.isdecimal() and int(number) < len(names):
            names[int(number)].add(name)
    return names
