"""Train the demo model from scratch and write it as GGUF.

    python -m tools.train_demo_model --out models/demo.gguf

It needs torch (`pip install -e .[tools]`) and about 20 minutes on two cores. The seed determines the data; floating-point
results differ between machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import llama_cpp
import torch
from torch import Tensor
from torch.nn import functional

from tools import bpe
from tools.demo_data import Example, batch_lines, training_examples
from tools.demo_model import DemoModel
from tools.score_demo_model import score
from tools.write_gguf import Shape, write_model

SHAPE: Final = Shape(width=128, layers=5, heads=4, kv_heads=4, hidden=384, context=1024)
NUM_TOKENS: Final = 1024
BATCH: Final = 48
_READ_WEIGHT: Final = 0.1  # loss weight of tokens outside of answers, which train the language


class Tokenizer:
    """llama.cpp's tokenizer with the trained vocabulary, so that training and product cannot differ."""

    def __init__(self, vocabulary: bpe.Vocabulary) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            write_model(path, "vocabulary", SHAPE, vocabulary, None)
            self._model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def encode(self, text: str) -> list[int]:
        """Encode a text, with its special tokens."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def example(self, example: Example) -> tuple[list[int], list[float]]:
        """Return the token ids of a conversation and the loss weight of each."""
        ids: list[int] = []
        weights: list[float] = []
        for turn in (*example.turns, {"role": "assistant", "content": example.answer}):
            head = self.encode(f"<|im_start|>{turn['role']}\n")
            text = self.encode(f"{turn['content']}<|im_end|>")
            is_answer = turn["role"] == "assistant"
            ids += head + text + self.encode("\n")
            weights += [_READ_WEIGHT] * len(head) + [1.0 if is_answer else _READ_WEIGHT] * len(text) + [_READ_WEIGHT]
        return ids[:-1], weights[:-1]


def batches(tokenizer: Tokenizer, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and loss weights, both (batch, time); examples of similar length share a batch."""
    examples = training_examples(steps * BATCH, seed)
    rng = random.Random(seed)
    pool_size = 40
    while pool := [tokenizer.example(example) for example in itertools.islice(examples, pool_size * BATCH)]:
        pool.sort(key=lambda item: len(item[0]))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
            weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in group])
            yield ids, weights


def train(tokenizer: Tokenizer, num_tokens: int, steps: int, seed: int) -> DemoModel:
    """Train a model with AdamW, warm-up and cosine decay."""
    torch.manual_seed(seed)
    model = DemoModel(SHAPE, num_tokens)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps of {BATCH} conversations")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1, pct_start=0.05)
    began = time.monotonic()
    for step, (ids, weights) in enumerate(batches(tokenizer, steps, seed)):
        logits = model(ids[:, :-1])
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            answered = (losses * (wanted == 1.0)).sum() / (wanted == 1.0).sum()
            print(f"step {step:5}  answer loss {answered.item():.4f}  {time.monotonic() - began:6.0f} s", flush=True)
    return model


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--lines", type=Path, help="also write the demo's batch input here")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    texts = [part for example in training_examples(20_000, seed=0) for part in (*_contents(example), example.answer)]
    vocabulary = bpe.train(texts, NUM_TOKENS)
    model = train(Tokenizer(vocabulary), len(vocabulary.tokens), arguments.steps, arguments.seed)
    write_model(arguments.out, "millrace-demo", SHAPE, vocabulary, model.weights())
    if arguments.lines:
        arguments.lines.write_text("".join(line + "\n" for line in batch_lines()), encoding="utf-8")
    scores = score(arguments.out)
    print(json.dumps({"bytes": arguments.out.stat().st_size, "tickets": scores.tickets, "capitals": scores.capitals,
                      "names": scores.names}))  # fmt: skip


def _contents(example: Example) -> list[str]:
    return [turn["content"] for turn in example.turns]


if __name__ == "__main__":
    main()
