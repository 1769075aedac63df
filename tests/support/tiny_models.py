"""Tiny models of random weights, one for each kind of memory of llama.cpp, written as GGUF files.

Each is far below a megabyte and identical on every machine. Its output is nonsense that depends on the whole prompt: a token
that is lost, doubled or seen by the wrong sequence changes the output, which is printable ASCII and never ends by itself.
Names and shapes of tensors are those of the model graphs of llama.cpp; matrices are (outputs, inputs).
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from tools.bpe import SPECIAL_TOKENS, Vocabulary, train
from tools.write_gguf import Weights, write_vocabulary

WIDTH: Final = 64
HEADS: Final = 2
HEAD: Final = WIDTH // HEADS  # 32 numbers: a whole block of the quantised KV types
LAYERS: Final = 2
HIDDEN: Final = 96
WINDOW: Final = 16
CONTEXT: Final = 4096
ENCODER_CONTEXT: Final = 512  # an encoder has a row of weights for each position
_STATE: Final = 16
_KERNEL: Final = 4
_STEP_RANK: Final = 4
_SHORT_KERNEL: Final = 3
_LOGIT_GAIN: Final = 4.0
_LORA_RANK: Final = 4
_TEXT: Final = (
    "the mill by the river grinds the grain of the whole valley and the miller counts the sacks, one by one. "
)


class TinyModel(StrEnum):
    """Tiny models, by the name of their architecture in llama.cpp."""

    LLAMA = "llama"  # attention in every layer
    MAMBA = "mamba"  # a recurrent state in every layer
    JAMBA = "jamba"  # hybrid: a recurrent layer, then an attention layer
    LFM2 = "lfm2"  # hybrid: a short convolution, then an attention layer
    GEMMA3 = "gemma3"  # a layer that attends to the last WINDOW tokens, then one that attends to all
    BERT = "bert"  # an encoder for embeddings: no memory, no logits


@cache
def tiny_vocabulary() -> Vocabulary:
    """Every byte, a few merges and the special tokens: 288 in all."""
    return train([_TEXT], 288)


def write_tiny_model(path: Path, model: TinyModel) -> Path:
    """Write the model to a file and return its path."""
    vocabulary = tiny_vocabulary()
    writer = gguf.GGUFWriter(str(path), model.value)
    writer.add_name(f"tiny-{model}")
    _write_shape(writer, model)
    writer.add_vocab_size(len(vocabulary.tokens))
    write_vocabulary(writer, vocabulary)
    for name, values in _weights(model, vocabulary).items():
        writer.add_tensor(name, values)
    _write_all(writer)
    return path


def write_sentencepiece_model(
    path: Path,
    *,
    adds_space: bool,
    adds_end: bool = False,
    templates: str | list[dict[str, str]] = "{{ messages[0].content }}",
) -> Path:
    """Write a model whose vocabulary is SentencePiece's: control tokens, bytes, letters and the space `▁`."""
    writer = gguf.GGUFWriter(str(path), TinyModel.LLAMA.value)
    _write_shape(writer, TinyModel.LLAMA)
    size = len(tiny_vocabulary().tokens)
    control, raw = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab"]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*control, *raw, *letters][:size])
    writer.add_token_scores([0.0] * (len(control) + len(raw)) + [-float(rank) for rank in range(len(letters))])
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types([*kinds, *[gguf.TokenType.BYTE] * 256, *[gguf.TokenType.NORMAL] * len(letters)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(adds_space)
    writer.add_add_eos_token(adds_end)
    writer.add_chat_template(templates)
    for name, values in _weights(TinyModel.LLAMA, tiny_vocabulary()).items():
        writer.add_tensor(name, values)
    _write_all(writer)
    return path


def write_tiny_lora(
    path: Path, *, architecture: str = "llama", width: int = WIDTH, tensor: str = "blk.0.attn_output.weight"
) -> Path:
    """Write an adapter that changes a (WIDTH, width) matrix of a tiny model by more than the size of the matrix."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(_LORA_RANK))
    writer.add_tensor(f"{tensor}.lora_a", random.standard_normal((_LORA_RANK, width)).astype(np.float32))
    writer.add_tensor(f"{tensor}.lora_b", random.standard_normal((WIDTH, _LORA_RANK)).astype(np.float32))
    _write_all(writer)
    return path


def _write_all(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_context_length(ENCODER_CONTEXT if model is TinyModel.BERT else CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(0 if model is TinyModel.MAMBA else HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    if model in (TinyModel.MAMBA, TinyModel.JAMBA):
        writer.add_ssm_conv_kernel(_KERNEL)
        writer.add_ssm_inner_size(2 * WIDTH)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_STEP_RANK)
    if model in (TinyModel.JAMBA, TinyModel.LFM2):
        writer.add_head_count_kv([0, HEADS])
    match model:
        case TinyModel.LFM2:
            writer.add_shortconv_l_cache(_SHORT_KERNEL)
        case TinyModel.GEMMA3:
            writer.add_key_length(HEAD)
            writer.add_value_length(HEAD)
            writer.add_sliding_window(WINDOW)
            writer.add_sliding_window_pattern([True, False])
        case TinyModel.BERT:
            writer.add_layer_norm_eps(1e-5)
            writer.add_causal_attention(False)
            writer.add_pooling_type(gguf.PoolingType.MEAN)
            writer.add_token_type_count(1)


def _weights(model: TinyModel, vocabulary: Vocabulary) -> Weights:
    draw = _Draw(model)
    if model is TinyModel.BERT:
        return _bert(draw, len(vocabulary.tokens))
    draw.embedding("token_embd.weight", len(vocabulary.tokens))
    draw.ones("token_embd_norm.weight" if model is TinyModel.LFM2 else "output_norm.weight", WIDTH)
    _draw_output(draw, vocabulary)
    for layer in range(LAYERS):
        draw.layer = layer
        draw.ones("attn_norm", WIDTH)
        _draw_memory(draw, model)
        if model is TinyModel.GEMMA3:
            draw.ones("post_attention_norm", WIDTH)
            draw.ones("post_ffw_norm", WIDTH)
        if model is not TinyModel.MAMBA:
            draw.ones("ffn_norm", WIDTH)
            draw.matrix("ffn_gate", WIDTH, HIDDEN)
            draw.matrix("ffn_up", WIDTH, HIDDEN)
            draw.matrix("ffn_down", HIDDEN, WIDTH)
    return draw.weights


class _Draw:
    """Random tensors by name; those of a layer have short names. Outputs are about as large as inputs."""

    def __init__(self, model: TinyModel) -> None:
        self._random = np.random.default_rng(sum(model.value.encode()))
        self._embedding_gain = WIDTH**-0.5 if model is TinyModel.GEMMA3 else 1.0  # its graph multiplies by √width
        self.weights: Weights = {}
        self.layer = 0

    def embedding(self, name: str, rows: int) -> None:
        self.put(name, self._normal(rows, WIDTH) * self._embedding_gain)

    def matrix(self, name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        self.put(self._layered(name), self._normal(outputs, inputs) * gain * inputs**-0.5)

    def ones(self, name: str, size: int) -> None:
        self.put(self._layered(name), np.ones(size))

    def filled(self, name: str, values: np.ndarray) -> None:
        self.put(f"blk.{self.layer}.{name}", values)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return self._random.uniform(low, high, shape)

    def put(self, name: str, values: np.ndarray) -> None:
        self.weights[name] = values.astype(np.float32)

    def _layered(self, name: str) -> str:
        return name if name.endswith(".weight") else f"blk.{self.layer}.{name}.weight"

    def _normal(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape)


def _draw_output(draw: _Draw, vocabulary: Vocabulary) -> None:
    """Give only tokens of printable ASCII a logit; all others have a logit of 0."""
    draw.matrix("output.weight", WIDTH, len(vocabulary.tokens), gain=_LOGIT_GAIN)
    for token, text in enumerate(vocabulary.tokens):
        if text in SPECIAL_TOKENS or not all("!" <= letter <= "~" or letter == "Ġ" for letter in text):
            draw.weights["output.weight"][token] = 0


def _draw_memory(draw: _Draw, model: TinyModel) -> None:
    """Draw the tensors that mix tokens in this layer."""
    is_hybrid = model in (TinyModel.JAMBA, TinyModel.LFM2)
    if model is TinyModel.MAMBA or (model is TinyModel.JAMBA and draw.layer == 0):
        _draw_recurrence(draw, has_norms=model is TinyModel.JAMBA)
    elif is_hybrid and draw.layer == 0:
        _draw_short_convolution(draw)
    else:
        _draw_attention(draw, has_norms=model in (TinyModel.LFM2, TinyModel.GEMMA3))


def _draw_attention(draw: _Draw, *, has_norms: bool) -> None:
    """Draw attention with sharp scores, so that the output depends on few tokens of the prompt and not on their mean."""
    draw.matrix("attn_q", WIDTH, WIDTH, gain=1.0 if has_norms else 2.0)
    draw.matrix("attn_k", WIDTH, WIDTH)
    draw.matrix("attn_v", WIDTH, WIDTH)
    draw.matrix("attn_output", WIDTH, WIDTH, gain=2.0)
    if has_norms:
        draw.filled("attn_q_norm.weight", np.full(HEAD, 2.0))
        draw.ones("attn_k_norm", HEAD)


def _draw_recurrence(draw: _Draw, *, has_norms: bool) -> None:
    """Draw decays so slow that a token has an effect after some hundred others."""
    inner = 2 * WIDTH
    draw.matrix("ssm_in", WIDTH, 2 * inner)
    draw.matrix("ssm_conv1d", _KERNEL, inner)
    draw.filled("ssm_conv1d.bias", np.zeros(inner))
    draw.matrix("ssm_x", inner, _STEP_RANK + 2 * _STATE, gain=2.0)
    draw.matrix("ssm_dt", _STEP_RANK, inner)
    draw.filled("ssm_dt.bias", draw.uniform(-3.0, -1.0, inner))
    draw.filled("ssm_a", -draw.uniform(0.02, 0.5, inner, _STATE))
    draw.filled("ssm_d", np.ones(inner))
    draw.matrix("ssm_out", inner, WIDTH, gain=2.0)
    if has_norms:
        for name, size in (("ssm_dt_norm", _STEP_RANK), ("ssm_b_norm", _STATE), ("ssm_c_norm", _STATE)):
            draw.ones(name, size)


def _draw_short_convolution(draw: _Draw) -> None:
    draw.matrix("shortconv.in_proj", WIDTH, 3 * WIDTH)
    draw.matrix("shortconv.conv", _SHORT_KERNEL, WIDTH, gain=2.0)
    draw.matrix("shortconv.out_proj", WIDTH, WIDTH)


def _bert(draw: _Draw, num_tokens: int) -> Weights:
    draw.embedding("token_embd.weight", num_tokens)
    draw.embedding("token_types.weight", 1)
    draw.embedding("position_embd.weight", ENCODER_CONTEXT)
    _draw_norm(draw, "token_embd_norm")
    for layer in range(LAYERS):
        draw.layer = layer
        _draw_attention(draw, has_norms=False)
        draw.matrix("ffn_up", WIDTH, HIDDEN)
        draw.matrix("ffn_down", HIDDEN, WIDTH)
        _draw_norm(draw, f"blk.{layer}.attn_output_norm")
        _draw_norm(draw, f"blk.{layer}.layer_output_norm")
    return draw.weights


def _draw_norm(draw: _Draw, name: str) -> None:
    draw.put(f"{name}.weight", np.ones(WIDTH))
    draw.put(f"{name}.bias", np.zeros(WIDTH))
