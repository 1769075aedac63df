"""Documents that begin alike: as a batch of questions against llama-server, and one after another in a model with a window.

The batch has eight questions on each of sixteen documents, shuffled. It is ordered before it runs, so each document is computed
once; llama-server takes requests as they come.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Final

from bench.engine import greedy, running_engine
from bench.llama_server import LlamaServer, RunningServer
from bench.models import random_prompts
from bench.stack import running_stack
from cli.client import Client
from cli.output_files import OutputFile
from engine.backends.llama.tokenizer import load_vocabulary

_DOCUMENTS: Final = 16
_QUESTIONS: Final = 8
_DOCUMENT_TOKENS: Final = 384
_QUESTION_TOKENS: Final = 24
_ANSWER_TOKENS: Final = 16
_SLOTS: Final = 8
_CONTEXT: Final = 512
_PAIRS: Final = 3
_SHARED_TOKENS: Final = 784
_OWN_TOKENS: Final = 750
_WORDS: Final = (
    "mill",
    "race",
    "water",
    "wheel",
    "stone",
    "grain",
    "flour",
    "river",
    "stream",
    "gear",
    "sack",
    "sieve",
)
_MODEL: Final = """name: bench
parameters: {{model: {path}}}
context_size: {context}
slots: {slots}
chat_template: "{{{{ messages[0].content }}}}"
"""


def prompts(path: Path, seed: int) -> list[str]:
    """Shuffled prompts; each seed gives different texts, so that no run finds those of an earlier one in a cache."""
    rng = random.Random(seed)
    tokenizer = load_vocabulary(path)

    def text(num_tokens: int) -> str:
        words: list[str] = []
        while len(tokenizer.encode(" ".join(words), special=False, add_bos=False)) < num_tokens:
            words += rng.choices(_WORDS, k=4)
        return " ".join(words)

    found = []
    for _ in range(_DOCUMENTS):
        document = text(_DOCUMENT_TOKENS)
        found += [f"{document}\n{text(_QUESTION_TOKENS)}" for _ in range(_QUESTIONS)]
    rng.shuffle(found)
    return found


def _batch_seconds(client: Client, folder: Path, texts: list[str]) -> float:
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    with source.open("w") as stream:
        for number, text in enumerate(texts):
            body = {
                "model": "bench",
                "messages": [{"role": "user", "content": text}],
                "max_tokens": _ANSWER_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            stream.write(json.dumps(line) + "\n")
    began = time.perf_counter()
    batch = client.create_batch(client.upload(source), "/v1/chat/completions", "24h")
    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        is_nearly_done = batch["request_counts"]["completed"] > 0.9 * len(texts)
        time.sleep(0.1 if is_nearly_done else 2.0)  # each poll takes some milliseconds from the cores of the engine
        batch = client.batch(batch["id"])
    OutputFile(path=output, may_replace=True).write(client.content(batch["output_file_id"]))
    seconds = time.perf_counter() - began
    assert batch["request_counts"]["completed"] == len(texts), batch
    return seconds


def _server_seconds(server: RunningServer, texts: list[str]) -> float:
    return server.run(
        [{"prompt": text, "n_predict": _ANSWER_TOKENS, "temperature": 0, "ignore_eos": True} for text in texts]
    )


def compare_documents(path: Path, folder: Path) -> tuple[float, float] | None:
    """Seconds of the whole stack and of llama-server; None if there is no llama-server."""
    found = LlamaServer.find()
    if found is None:
        return None
    model = _MODEL.format(path=path.resolve(), context=_CONTEXT, slots=_SLOTS)
    threads = len(os.sched_getaffinity(0))
    ours, theirs = [], []
    with (
        running_stack(model) as stack,
        Client(f"{stack.url}/v1", "bench") as client,
        found.running(path, _SLOTS, _CONTEXT, threads) as server,
    ):
        _batch_seconds(client, folder, prompts(path, 99)[:8])
        _server_seconds(server, prompts(path, 98)[:8])
        for seed in range(_PAIRS):
            texts = prompts(path, seed)
            ours.append(_batch_seconds(client, folder, texts))
            theirs.append(_server_seconds(server, texts))
    return statistics.median(ours), statistics.median(theirs)


def windowed_model() -> Path | None:
    """`window.gguf` in the folder MILLRACE_BENCH_MODELS: a model whose layers have a window, such as Gemma 3; None without it."""
    path = Path(os.environ.get("MILLRACE_BENCH_MODELS", "")) / "window.gguf"
    return path if path.is_file() else None


def cached_tokens_one_by_one(path: Path) -> list[int]:
    """Cached tokens of a shared start, then of three texts that begin with it, one request at a time on an idle engine."""
    start, *texts = random_prompts(4, _SHARED_TOKENS, below=load_vocabulary(path).num_vocab - 8)
    prompts = [[*start, 1], *([*start, *text[:_OWN_TOKENS]] for text in texts)]
    with running_engine(path, slots=_SLOTS, context_size=2048, threads=len(os.sched_getaffinity(0))) as engine:
        return [engine.run([request])[1].num_cached for request in greedy(prompts, 8)]
