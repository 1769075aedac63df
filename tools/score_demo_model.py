"""Score a demo model file on held-out examples: shares of right answers, generated greedily by llama.cpp.

python -m tools.score_demo_model models/demo.gguf
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from tools.demo_data import Example, held_out_capitals, held_out_names, held_out_tickets


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares from 0 to 1 of answers that are exactly right."""

    tickets: float
    capitals: float
    names: float


def score(path: Path, num_tickets: int = 240) -> Scores:
    """Run every held-out example once."""
    model = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=False, verbose=False)
    try:
        return Scores(
            tickets=_share(model, held_out_tickets(num_tickets)),
            capitals=_share(model, held_out_capitals()),
            names=_share(model, held_out_names()),
        )
    finally:
        model.close()


def _share(model: Any, examples: list[Example]) -> float:  # Any: llama_cpp has no types
    return sum(_answer(model, example) == example.answer for example in examples) / len(examples)


def _answer(model: Any, example: Example) -> str:  # Any: llama_cpp has no types
    reply = model.create_chat_completion(list(example.turns), temperature=0.0, max_tokens=60)
    return str(reply["choices"][0]["message"]["content"])


if __name__ == "__main__":
    print(score(Path(sys.argv[1])))
