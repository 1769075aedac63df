"""A batch of short texts to embed: the whole stack against a bare loop of llama.cpp, and against llama-server, in turns.

MILLRACE_BENCH_EMBEDDINGS names the GGUF file; without it smol135 is used. The bare loop is the least that a Python program
can do: it tokenises beforehand, packs `prefill_tokens` of inputs into each decode and copies the vectors.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx2
import llama_cpp as llama
import numpy as np

from bench.llama_server import LlamaServer
from bench.models import SMOL135
from bench.stack import running_stack
from cli.client import Client
from cli.output_files import OutputFile
from engine.backends.llama.batch import Batch
from engine.backends.llama.gguf import start_llama
from engine.backends.llama.tokenizer import LlamaTokenizer

_TEXTS: Final = 2000
_ROUNDS: Final = 3
_DECODE: Final = 512
_INPUTS: Final = 128
_IN_FLIGHT: Final = 32
_MODEL: Final = "name: bench\nparameters: {{model: {path}}}\ncontext_size: {context}\nembeddings: true\nslots: 8\n"
_WORDS: Final = ("card", "address", "account", "money", "arrived", "what", "can", "I", "do", "to", "get", "my", "new")


def texts(number: int, seed: int) -> list[str]:
    """Different texts of about 14 tokens."""
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(_WORDS, k=rng.randint(8, 16)))} {number}?" for number in range(number)]


class BareEmbedder:
    """A loaded model that embeds tokenised texts, `_DECODE` tokens at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        start_llama()
        self._model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = _DECODE
        parameters.n_seq_max, parameters.kv_unified, parameters.embeddings = _INPUTS, True, True
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, parameters)
        self._memory = llama.llama_get_memory(self._context)
        self._width = llama.llama_model_n_embd_out(self._model)
        self._tokenizer = LlamaTokenizer(self._model)
        self._batch = Batch(_DECODE)

    def close(self) -> None:
        """Free the model."""
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def seconds(self, given: list[str]) -> float:
        """Seconds to embed these texts."""
        prompts = [self._tokenizer.encode(text, special=False, add_bos=True, add_end=True) for text in given]
        began = time.perf_counter()
        vectors = [vector for group in _packed(prompts) for vector in self._embed(group)]
        assert len(vectors) == len(given)
        return time.perf_counter() - began

    def _embed(self, prompts: list[list[int]]) -> Iterator[np.ndarray]:
        at = 0
        for slot, prompt in enumerate(prompts):
            end = at + len(prompt)
            self._batch.tokens[at:end], self._batch.positions[at:end] = prompt, range(len(prompt))
            self._batch.slots[at:end], self._batch.wants_logits[at:end] = slot, 1
            at = end
        self._batch.raw.n_tokens = at
        assert llama.llama_decode(self._context, self._batch.raw) == 0
        for slot in range(len(prompts)):
            pointer = llama.llama_get_embeddings_seq(self._context, slot)
            yield np.ctypeslib.as_array(pointer, shape=(self._width,)).copy()
        llama.llama_memory_clear(self._memory, False)


def _packed(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for prompt in prompts:
        if group and (len(group) == _INPUTS or sum(map(len, group)) + len(prompt) > _DECODE):
            yield group
            group = []
        group.append(prompt)
    yield group


def _batch_seconds(client: Client, folder: Path, given: list[str]) -> float:
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    with source.open("w") as stream:
        for number, text in enumerate(given):
            body = {"model": "bench", "input": text}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
            stream.write(json.dumps(line) + "\n")
    began = time.perf_counter()
    batch = client.create_batch(client.upload(source), "/v1/embeddings", "24h")
    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.1 if batch["request_counts"]["completed"] > 0.9 * len(given) else 1.0)
        batch = client.batch(batch["id"])
    OutputFile(path=output, may_replace=True).write(client.content(batch["output_file_id"]))
    seconds = time.perf_counter() - began
    assert batch["request_counts"]["completed"] == len(given), batch
    return seconds


def _server_seconds(url: str, given: list[str]) -> float:
    def post(text: str) -> None:
        client.post(f"{url}/v1/embeddings", json={"input": text}).raise_for_status()

    with httpx2.Client(timeout=600) as client, ThreadPoolExecutor(_IN_FLIGHT) as pool:
        began = time.perf_counter()
        list(pool.map(post, given))
        return time.perf_counter() - began


def compare_embeddings(folder: Path) -> dict[str, float]:
    """How many times faster the batch is than the bare loop, and than llama-server if there is one: medians of pairs."""
    given_path = os.environ.get("MILLRACE_BENCH_EMBEDDINGS")
    path = Path(given_path) if given_path else SMOL135.path()
    threads = len(os.sched_getaffinity(0))
    server = LlamaServer.find()
    bare = BareEmbedder(path, threads)
    ratios: dict[str, list[float]] = {"bare loop": [], "llama-server": []}
    model = _MODEL.format(path=path.resolve(), context=_DECODE)
    for seed in range(_ROUNDS):
        given = texts(_TEXTS, seed)
        with running_stack(model) as stack, Client(f"{stack.url}/v1", "bench") as client:
            _batch_seconds(client, folder, given[:64])
            ours = _batch_seconds(client, folder, given)
        ratios["bare loop"].append(bare.seconds(given) / ours)
        with ExitStack() as exits:
            if server is not None:
                extra = ("--embeddings", "--pooling", "mean")
                running = exits.enter_context(server.running(path, 8, _DECODE, threads, extra))
                ratios["llama-server"].append(_server_seconds(running.url, given) / ours)
    bare.close()
    return {name: statistics.median(values) for name, values in ratios.items() if values}
