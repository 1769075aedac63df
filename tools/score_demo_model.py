"""Score a demo model file on held-out examples: shares of right answers, generated greedily by llama.cpp.

python -m tools.score_demo_model models/demo.gguf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import llama_cpp

from tools.demo_data import SENTENCE, Example, user_turn
from tools.held_out_data import (
    held_out_capitals,
    held_out_conversations,
    held_out_foreign,
    held_out_names,
    held_out_own_tickets,
    held_out_tickets,
)

_CONTEXT: Final = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """Examples of one kind and those that were answered wrongly, with their answers."""

    number: int
    wrong: tuple[tuple[Example, str], ...]

    @property
    def share(self) -> float:
        """Share from 0 to 1 of answers that are exactly right."""
        return 1 - len(self.wrong) / self.number

    def __add__(self, other: Score) -> Score:
        return Score(self.number + other.number, self.wrong + other.wrong)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the skills, and of foreign prompts and of conversations by kind."""

    tickets: Score
    own_tickets: Score
    capitals: Score
    names: Score
    foreign_kinds: dict[str, Score]
    conversations: dict[str, Score]

    @property
    def foreign(self) -> Score:
        """Score of the foreign prompts of kinds that are absent from training."""
        return sum((s for kind, s in self.foreign_kinds.items() if not kind.startswith("near ")), Score(0, ()))


def score(path: Path, num_tickets: int = 240) -> Scores:
    """Run every held-out example once."""
    with _loaded(path) as model:
        return Scores(
            tickets=_score(model, held_out_tickets(num_tickets)),
            own_tickets=_score(model, held_out_own_tickets()),
            capitals=_score(model, held_out_capitals()),
            names=_score(model, held_out_names()),
            foreign_kinds={kind: _score(model, examples) for kind, examples in held_out_foreign().items()},
            conversations={kind: _score(model, examples) for kind, examples in held_out_conversations().items()},
        )


def rows(scores: Scores) -> Iterator[str]:
    """Format each score as a line, the totals first."""
    totals = {"tickets": scores.tickets, "capitals": scores.capitals, "names": scores.names, "foreign": scores.foreign}
    own = {"tickets in own words": scores.own_tickets}
    for kind, each in (totals | own | scores.conversations | scores.foreign_kinds).items():
        yield f"{each.share:7.1%} of {each.number:3}  {kind}"


def answers(path: Path, texts: Iterable[str]) -> list[str]:
    """Answer each text in a conversation of its own."""
    with _loaded(path) as model:
        return [_answer(model, (user_turn(text),)) for text in texts]


@contextmanager
def _loaded(path: Path) -> Iterator[Any]:  # Any: llama_cpp has no types
    model = llama_cpp.Llama(str(path), n_ctx=_CONTEXT, n_batch=_CONTEXT, logits_all=False, verbose=False)
    try:
        yield model
    finally:
        model.close()


def _score(model: Any, examples: list[Example]) -> Score:  # Any: llama_cpp has no types
    answers = [(example, _answer(model, example.turns)) for example in examples]
    return Score(len(examples), tuple((example, answer) for example, answer in answers if answer != example.answer))


def _answer(model: Any, turns: tuple[dict[str, str], ...]) -> str:  # Any: llama_cpp has no types
    reply = model.create_chat_completion(list(turns), temperature=0.0, max_tokens=60)
    return str(reply["choices"][0]["message"]["content"])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wrong", action="store_true", help="also print the wrong answers")
    arguments = parser.parse_args()
    scores = score(arguments.model)
    print(f"The sentence for foreign prompts: {SENTENCE}\n", *rows(scores), sep="\n")
    if arguments.wrong:
        every = (
            scores.tickets,
            scores.own_tickets,
            scores.capitals,
            scores.names,
            *scores.foreign_kinds.values(),
            *scores.conversations.values(),
        )
        for example, answer in (wrong for each in every for wrong in each.wrong):
            print(f"\n{example.turns[-1]['content']}\n  wanted {example.answer}\n  got    {answer}")


if __name__ == "__main__":
    _main()
