"""Time that Python adds to a step: everything except decoding and sampling, with 32 sequences side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from bench.engine import greedy
from bench.models import BenchModel, random_prompts
from engine.backends.llama.backend import LlamaBackend
from engine.backends.llama.decoder import LlamaDecoder
from engine.config import EngineConfig
from engine.inputs.input_processor import InputProcessor
from engine.inputs.prompt_encoder import PromptEncoder
from engine.loop import AddRequest, EngineLoop
from engine.structured.compiler import GrammarCompiler

_SLOTS: Final = 32
_STEPS: Final = 200


def milliseconds_per_step(model: BenchModel, path: Path) -> float:
    """Milliseconds per step in which every sequence decodes one token."""
    config = EngineConfig(model="bench", endpoint="", model_path=str(path), slots=_SLOTS, context_size=_STEPS + 64)
    backend = LlamaBackend(config)
    engine = EngineLoop(backend, config, lambda *_: None)
    encoder = PromptEncoder(backend.tokenizer, template=None, context_size=config.context_size)
    grammars = GrammarCompiler(backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab)
    input_processor = InputProcessor(encoder, grammars, stopwords=[], context_size=config.context_size)
    for request in greedy(random_prompts(_SLOTS, 8, below=model.num_tokens - 8), _STEPS + 32):
        engine.inbox.put(AddRequest(input_processor.process("bench", request)))
    for _ in range(16):
        engine.run_once()
    decoder = backend.decoder
    assert isinstance(decoder, LlamaDecoder)
    computed = decoder.decode_seconds + decoder.sample_seconds
    began = time.perf_counter()
    for _ in range(_STEPS):
        engine.run_once()
    total = time.perf_counter() - began
    return 1000 * (total - (decoder.decode_seconds + decoder.sample_seconds - computed)) / _STEPS
