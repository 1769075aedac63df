"""The backend transformers against a bare loop over the same calls of the library, in turns, in seconds of computing.

The loops are what a program without a queue does: `generate` of all prompts, padded to one length, and forwards of padded texts
in order of length. Neither stops early. `continuous_batching` is the scheduler of the library, for docs/decisions/0016.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.models import DEMO
from engine.backends.base import Backend
from engine.config import BackendKind, EngineConfig
from engine.embedding import encode_inputs
from engine.inputs.input_processor import InputProcessor
from engine.inputs.prompt_encoder import PromptEncoder
from engine.loop import AddEmbedding, AddRequest, EngineLoop
from engine.process.server import load_backend
from engine.structured.compiler import GrammarCompiler
from engine.types import EmbedRequest, Priority, Request, SamplingParams, TextPrompt
from tools.export_demo_hf import export

_CHATS: Final = 64
_NEW_TOKENS: Final = 64
_TEXTS: Final = 2000
_BATCH: Final = 32
_ROUNDS: Final = 3
_THREADS: Final = 1  # so that computing seconds are those of the work, not of threads that wait
_WORDS: Final = (
    "the",
    "mill",
    "by",
    "river",
    "grinds",
    "grain",
    "of",
    "whole",
    "valley",
    "and",
    "miller",
    "counts",
    "sacks",
)


def compare_chats() -> tuple[float, float]:
    """Tokens per second of computing, of 64 answers of 64 tokens: of the engine, and of `generate`."""
    with tempfile.TemporaryDirectory() as name:
        export(DEMO, folder := Path(name))
        prompts = _texts(_CHATS, 10, 30)
        seconds = _in_turns(_engine_chats(folder, prompts), _bare_chats(folder, prompts))
    ours, bare = (_CHATS * _NEW_TOKENS / each for each in seconds)
    return ours, bare


def compare_embeddings() -> tuple[float, float]:
    """Texts per second of computing, of 2,000 short texts on a small BERT: of the engine, and of a loop."""
    with tempfile.TemporaryDirectory() as name:
        folder, texts = _encoder(Path(name)), _texts(_TEXTS, 4, 24)
        seconds = _in_turns(_engine_embeddings(folder, texts), _bare_embeddings(folder, texts))
    ours, bare = (_TEXTS / each for each in seconds)
    return ours, bare


def continuous_batching() -> float:
    """Tokens per second of computing, of the same answers by the library's own continuous batching, without its set-up."""
    with tempfile.TemporaryDirectory() as name:
        export(DEMO, folder := Path(name))
        (seconds,) = _in_turns(_library_chats(folder, _texts(_CHATS, 10, 30)), rounds=2)
    return _CHATS * _NEW_TOKENS / seconds


def _in_turns(*runs: Callable[[], None], rounds: int = _ROUNDS) -> list[float]:
    """Median computing seconds of each run, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = time.process_time()
            run()
            if number:
                found.append(time.process_time() - began)
    return [statistics.median(found) for found in seconds]


def _texts(number: int, least: int, most: int) -> list[str]:
    rng = random.Random(5)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(least, most))) for _ in range(number)]


def _engine(folder: Path, **given: Any) -> tuple[Backend, EngineLoop]:  # Any: values of an EngineConfig
    config = EngineConfig(
        model="bench",
        endpoint="",
        backend=BackendKind.TRANSFORMERS,
        model_path=str(folder),
        threads=_THREADS,
        **given,
    )
    backend = load_backend(config)
    return backend, EngineLoop(backend, config, lambda _, __: None)


def _engine_chats(folder: Path, prompts: list[str]) -> Callable[[], None]:
    backend, engine = _engine(folder, context_size=256, slots=_CHATS, spare_slots=0)
    encoder = PromptEncoder(backend.tokenizer, template=None, context_size=256)
    grammars = GrammarCompiler(backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab)
    inputs = InputProcessor(encoder, grammars, stopwords=[], context_size=256)

    def run() -> None:
        for number, prompt in enumerate(prompts):
            request = Request(
                id=str(number),
                prompt=TextPrompt(text=prompt),
                sampling=SamplingParams(temperature=0),
                max_tokens=_NEW_TOKENS,
                ignore_eos=True,
                stream=True,
                tenant=str(time.monotonic_ns()),  # nothing is reused of the last run
            )
            engine.inbox.put(AddRequest(inputs.process("bench", request)))
        while engine.run_once():
            pass

    return run


def _bare_chats(folder: Path, prompts: list[str]) -> Callable[[], None]:
    tokenizer, generate = _library(folder)

    def run() -> None:
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        generate(**encoded, min_new_tokens=_NEW_TOKENS)

    return run


def _library_chats(folder: Path, prompts: list[str]) -> Callable[[], None]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    config = GenerationConfig(max_new_tokens=_NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    inputs = [tokenizer(prompt).input_ids for prompt in prompts]
    return partial(model.generate_batch, inputs=inputs, generation_config=config, progress_bar=False)


def _library(folder: Path) -> tuple[Any, Callable[..., Any]]:  # Any: classes of transformers
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(_THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return tokenizer, torch.inference_mode()(
        partial(model.generate, max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    )


def _engine_embeddings(folder: Path, texts: list[str]) -> Callable[[], None]:
    """Each text is a request of its own, as a line of a batch."""
    backend, engine = _engine(folder, context_size=128, slots=1, embeddings=True)
    embedder = backend.embedder
    assert embedder is not None, "the model embeds"

    def run() -> None:
        for number, text in enumerate(texts):
            request = EmbedRequest(id=str(number), inputs=[TextPrompt(text=text)], priority=Priority.BATCH)
            prompts = encode_inputs(request, backend.tokenizer, embedder.max_tokens)
            engine.inbox.put(AddEmbedding("bench", request, prompts))
        while engine.run_once():
            pass

    return run


def _bare_embeddings(folder: Path, texts: list[str]) -> Callable[[], None]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(_THREADS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def run() -> None:
        ordered = sorted(texts, key=len)
        with torch.inference_mode():
            for at in range(0, len(ordered), _BATCH):
                encoded = tokenizer(ordered[at : at + _BATCH], return_tensors="pt", padding=True)
                states, mask = model(**encoded).last_hidden_state, encoded["attention_mask"][:, :, None]
                mean = (states * mask).sum(1) / mask.sum(1)
                torch.nn.functional.normalize(mean).numpy()

    return run


def _encoder(folder: Path) -> Path:
    """Write a BERT of random weights, of the size of small models for embeddings: 6 layers of 384 numbers."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    BertModel(BertConfig(vocab_size=1000, max_position_embeddings=512, **shape)).save_pretrained(folder)
    return folder
