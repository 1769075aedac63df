"""Tiny models of random weights in the format of Hugging Face, and the answers of the library itself for them.

Imports torch and transformers: a test module asks for them first, by `extra`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pytest

REASON: Final = "needs the extra transformers"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

import tokenizers  # noqa: E402 - it is a part of the extra
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

WINDOW: Final = 8
WIDTH: Final = 64
TEMPLATE: Final = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}<|assistant|>"
_TEXT: Final = (
    "the mill by the river grinds the grain of the whole valley and the miller counts the sacks, one by one. "
)
_SPECIAL: Final = ["<|end|>", "<|user|>", "<|assistant|>"]
_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}


class TinyFolder(StrEnum):
    """Tiny models, by the way of their attention."""

    LLAMA = "llama"  # a head of keys for each head of queries
    QWEN2 = "qwen2"  # two heads of queries share one of keys
    GEMMA3 = "gemma3"  # a layer that attends to the last WINDOW tokens, then one that attends to all
    GEMMA2 = "gemma2"  # limited scores
    GPT_OSS = "gpt-oss"  # experts, and a score of nothing for each head
    DEEPSEEK = "deepseek"  # keys of another size than values
    BERT = "bert"  # an encoder
    ROBERTA = "roberta"  # an encoder whose positions begin at 2


def make_folder(folder: Path, kind: TinyFolder) -> Path:
    """Write a model and its tokenizer, and return its folder."""
    tokenizer = _word_tokenizer() if kind in (TinyFolder.BERT, TinyFolder.ROBERTA) else _byte_tokenizer()
    config = _config(kind, len(tokenizer))
    torch.manual_seed(len(kind.value))
    loader = (
        transformers.AutoModel if kind in (TinyFolder.BERT, TinyFolder.ROBERTA) else transformers.AutoModelForCausalLM
    )
    model = loader.from_config(config)
    _draw(model, tokenizer)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generate(folder: Path, tokens: list[int], num_tokens: int, **options: Any) -> list[int]:
    """The greedy answer of `model.generate` to one prompt alone."""
    model = library_model(folder)
    ids = torch.tensor([tokens])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0, **options
    )
    new: list[int] = answer[0, len(tokens) :].tolist()
    return new


_loaded: dict[Path, Any] = {}


def library_model(folder: Path) -> Any:
    """The model as the library loads it, once."""
    if folder not in _loaded:
        _loaded[folder] = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return _loaded[folder]


def _config(kind: TinyFolder, vocabulary: int) -> Any:
    shape = {**_SHAPE, "vocab_size": vocabulary + 4, "tie_word_embeddings": False}
    shared = {**shape, "num_key_value_heads": 2, "head_dim": 16}
    windows = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    makers: dict[TinyFolder, Callable[[], Any]] = {
        TinyFolder.LLAMA: lambda: transformers.LlamaConfig(**shape),
        TinyFolder.QWEN2: lambda: transformers.Qwen2Config(**{**shape, "num_key_value_heads": 2}),
        TinyFolder.GEMMA3: lambda: transformers.Gemma3TextConfig(**shared, **windows),
        TinyFolder.GEMMA2: lambda: transformers.Gemma2Config(**shared, **windows, attn_logit_softcapping=2.0),
        TinyFolder.GPT_OSS: lambda: transformers.GptOssConfig(
            **shared, **windows, num_local_experts=4, num_experts_per_tok=2
        ),
        TinyFolder.DEEPSEEK: lambda: transformers.DeepseekV3Config(
            **shape,
            num_key_value_heads=4,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
            first_k_dense_replace=1,
        ),
        TinyFolder.BERT: lambda: transformers.BertConfig(**{**shape, "pad_token_id": 0}, max_position_embeddings=64),
        TinyFolder.ROBERTA: lambda: transformers.RobertaConfig(
            **{**shape, "pad_token_id": 1}, max_position_embeddings=66, type_vocab_size=1
        ),
    }
    return makers[kind]()


def _draw(model: Any, tokenizer: Any) -> None:
    """Draw sharp weights; only tokens of printable ASCII get a logit, so that an answer is text and depends on its prompt."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.dim() >= 2 and "embed" not in name:
                values.normal_().mul_(1.5 * values.shape[-1] ** -0.5)
        head = model.get_output_embeddings()
        if head is None:
            return
        head.weight.mul_(3)
        for token in range(head.weight.shape[0]):
            spelling = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
            is_text = all("!" <= letter <= "~" or letter == "Ġ" for letter in spelling or "\0")
            if token < len(_SPECIAL) or not is_text:
                head.weight[token] = 0


def _byte_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """Spaces as `▁`, one in front of a text, and bytes for letters that the vocabulary lacks."""
    control, raw = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab"]
    vocabulary = {token: number for number, token in enumerate([*control, *raw, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(control)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _word_tokenizer() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words += ["mill", "river", "grain", "the", "by", ",", "."]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
