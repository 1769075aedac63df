"""Train the demo model from scratch and write it as GGUF.

    python -m tools.train_demo_model --out models/demo.gguf

It needs torch (`pip install -e .[tools]`) and about 20 minutes of one core; `OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE` keeps
its threads from spinning on a busy machine. `models/demo.gguf` comes from one run with the default steps and seed. The seed
determines the data; floating-point results differ between machines.
"""

from __future__ import annotations

import argparse
import itertools
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
from tools.demo_data import SENTENCE, Example
from tools.demo_model import DemoModel
from tools.held_out_data import batch_lines, batch_table
from tools.score_demo_model import rows, score
from tools.training_data import training_examples
from tools.write_gguf import Shape, write_model

SHAPE: Final = Shape(width=128, layers=5, heads=4, kv_heads=4, hidden=384, context=1024)
NUM_TOKENS: Final = 1024
BATCH_TOKENS: Final = 4096
_POOL: Final = 2000  # conversations that are sorted by length together
_READ_WEIGHT: Final = 0.05  # loss weight of tokens outside of answers, which train the language
_FIRST_WEIGHT: Final = 4.0  # of an answer's first token, which decides between the skills and the foreign prompts
_LATER_WEIGHT: Final = (
    0.1  # of the tokens after the third of the sentence for foreign prompts, which are always the same
)


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
        turns = (*example.turns, {"role": "assistant", "content": example.answer})
        for index, turn in enumerate(turns, start=1):
            head = self.encode(f"<|im_start|>{turn['role']}\n")
            text = self.encode(f"{turn['content']}<|im_end|>")
            is_learned = turn["role"] == "assistant" and (example.is_history_learned or index == len(turns))
            ids += head + text + self.encode("\n")
            weights += [_READ_WEIGHT] * len(head)
            later = _LATER_WEIGHT if turn["content"] == SENTENCE else 1.0
            learned = [_FIRST_WEIGHT, 1.0, 1.0, *[later] * (len(text) - 3)]
            weights += learned if is_learned else [_READ_WEIGHT] * len(text)
            weights.append(_READ_WEIGHT)
        return ids[:-1], weights[:-1]


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and loss weights, both (batch, time), without end; conversations of similar length share a batch."""
    rng = random.Random(seed)
    for number in itertools.count():
        examples = (tokenizer.example(example) for example in training_examples(_POOL, seed * 10_000 + number))
        pool = sorted((item for item in examples if len(item[0]) <= SHAPE.context), key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for item in pool:
            if len(item[0]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(item)
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
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps of {BATCH_TOKENS} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1, pct_start=0.05)
    for step, (ids, weights) in enumerate(itertools.islice(batches(tokenizer, seed), steps)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            answered = (losses * (wanted >= 1.0)).sum() / (wanted >= 1.0).sum()
            print(f"step {step:5}  answer loss {answered.item():.4f}  {time.process_time():6.0f} CPU s", flush=True)
    return model


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--lines", type=Path, help="also write the demo's batch input here, and its table beside it")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    texts = [part for example in training_examples(2000, seed=0) for part in (*_contents(example), example.answer)]
    vocabulary = bpe.train(texts, NUM_TOKENS)
    model = train(Tokenizer(vocabulary), len(vocabulary.tokens), arguments.steps, arguments.seed)
    write_model(arguments.out, "millrace-demo", SHAPE, vocabulary, model.weights())
    if arguments.lines:
        arguments.lines.write_text("".join(line + "\n" for line in batch_lines()), encoding="utf-8")
        arguments.lines.with_suffix(".csv").write_text(batch_table(), encoding="utf-8")
    print(f"{arguments.out.stat().st_size:,} bytes", *rows(score(arguments.out)), sep="\n")


def _contents(example: Example) -> list[str]:
    return [turn["content"] for turn in example.turns]


if __name__ == "__main__":
    main()
