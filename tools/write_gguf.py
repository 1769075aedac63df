"""Write GGUF files of Llama-architecture models from weights in the Hugging Face layout.

Matrices are written as Q8_0, vectors as F32.
Source of names and of the order of rotary rows: llama.cpp's converter and its `llama` graph (interleaved pairs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

from tools.bpe import SPECIAL_TOKENS, Vocabulary

Weights = dict[str, NDArray[np.float32]]

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-architecture model; `width` is divisible by `heads`, and by 32 for Q8_0."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5


def write_model(path: Path, name: str, shape: Shape, vocabulary: Vocabulary, weights: Weights | None) -> None:
    """Write a model file; without weights, a vocabulary-only file that can tokenise."""
    with model_writer(path, name, shape, vocabulary) as writer:
        for tensor, values in (weights or {}).items():
            _write_tensor(writer, _rotary(tensor, values, shape), tensor)


@contextmanager
def model_writer(path: Path, name: str, shape: Shape, vocabulary: Vocabulary) -> Iterator[gguf.GGUFWriter]:
    """Yield a writer that has all keys of a model; the file is written after the block, which adds the tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    _write_shape(writer, shape, len(vocabulary.tokens))
    write_vocabulary(writer, vocabulary)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter, shape: Shape, num_tokens: int) -> None:
    """Write the keys of a shape."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(num_tokens)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the tokenizer keys of a byte-level BPE vocabulary, and a chat template with its special tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in vocabulary.tokens
    ]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.id_of("<|endoftext|>"))
    writer.add_eos_token_id(vocabulary.id_of("<|im_end|>"))
    writer.add_eot_token_id(vocabulary.id_of("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _rotary(name: str, values: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Reorder the rows of Q and K from half-split to interleaved pairs, the order in which llama.cpp rotates them."""
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2] if "." in name else name)
    if heads is None:
        return values
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tensor(writer: gguf.GGUFWriter, values: NDArray[np.float32], name: str) -> None:
    if values.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)
