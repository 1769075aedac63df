"""Answers by schema that do not end: on a model that can write anything, how many are cut at their token limit.

`python -m bench.unfinished MODEL.gguf SCHEMAS.jsonl`: each line holds `schema` and `prompt`. If MILLRACE_BENCH_LLAMA_SERVER names
a binary, llama-server answers the same prompts. Every answer that ends is validated against its schema.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import jsonschema_rs

from bench.engine import RunningEngine, running_engine
from bench.llama_server import LlamaServer, RunningServer
from engine.process.client import EngineLost
from engine.types import (
    Constraint,
    ConstraintKind,
    Delta,
    Failed,
    Finished,
    FinishReason,
    Priority,
    Request,
    SamplingParams,
    TextPrompt,
)

SLOTS: Final = 8
CONTEXT: Final = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """A schema, and a prompt that an answer continues."""

    schema: dict[str, Any]  # Any: JSON
    prompt: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a case: `refused` is the error of a schema that is not supported."""

    text: str = ""
    is_cut: bool = False
    refused: str = ""


class _Sink:
    """Receives the end of one request."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.done = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        """Do nothing: nothing is streamed."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Keep the answer; runs in the thread of the client."""
        if isinstance(outcome, Finished):
            self.answer = Answer(outcome.text, outcome.reason is FinishReason.LENGTH)
        else:
            self.answer = Answer(refused=str(outcome))
        self.done.set()


def ours(engine: RunningEngine, cases: list[Case], max_tokens: int) -> list[Answer]:
    """The answers of our engine."""
    sinks = []
    for index, case in enumerate(cases):
        sinks.append(_Sink())
        constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(case.schema))
        request = Request(
            id=str(index),
            prompt=TextPrompt(text=case.prompt),
            sampling=SamplingParams(temperature=0),
            max_tokens=max_tokens,
            constraint=constraint,
            priority=Priority.BATCH,
        )
        engine.client.submit(request, sinks[-1])
    for sink in sinks:
        assert sink.done.wait(3600), "the engine did not finish"
    return [sink.answer for sink in sinks]


def theirs(server: RunningServer, cases: list[Case], max_tokens: int) -> list[Answer]:
    """The answers of llama-server."""

    def post(case: Case) -> Answer:
        body = {"prompt": case.prompt, "json_schema": case.schema, "n_predict": max_tokens, "temperature": 0}
        try:
            response = client.post(f"{server.url}/completion", json=body)
        except httpx2.HTTPError as error:
            return Answer(refused=str(error))
        if response.status_code != 200:
            return Answer(refused=response.text)
        value = response.json()
        return Answer(value["content"], value["stop_type"] == "limit")

    with httpx2.Client(timeout=3600) as client, ThreadPoolExecutor(SLOTS) as pool:
        return list(pool.map(post, cases))


def outcome(case: Case, answer: Answer) -> str:
    """`refused`, `unfinished`, `valid`, or `broken` for an answer that ends and does not match its schema."""
    if answer.refused:
        return "refused"
    if answer.is_cut:
        return "unfinished"
    try:
        value = json.loads(answer.text)
        return "valid" if jsonschema_rs.is_valid(case.schema, value, validate_formats=True) else "broken"
    except ValueError as error:
        return "broken" if isinstance(error, json.JSONDecodeError) else "not checked"  # not a valid schema


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.unfinished", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("schemas", type=Path)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, help="write all answers to this file")
    given = parser.parse_args()
    with given.schemas.open() as lines:
        cases = [Case(value["schema"], value["prompt"]) for value in map(json.loads, lines)]
    threads = len(os.sched_getaffinity(0))
    answers: dict[str, list[Answer]] = {}
    with running_engine(given.model, slots=SLOTS, spare_slots=1, context_size=CONTEXT, threads=threads) as engine:
        answers["millrace"] = ours(engine, cases, given.max_tokens)
    if (binary := LlamaServer.find()) is not None:
        with binary.running(given.model, SLOTS, CONTEXT, threads) as server:
            answers["llama-server"] = theirs(server, cases, given.max_tokens)
    for name, rows in answers.items():
        print(name, dict(Counter(outcome(*pair) for pair in zip(cases, rows, strict=True))))
    if len(answers) == 2:
        pairs = zip(*answers.values(), cases, strict=True)
        both = [(outcome(case, a), outcome(case, b)) for a, b, case in pairs if not (a.refused or b.refused)]
        print(
            f"of {len(both)} that both take:",
            *(Counter(each)["unfinished"] for each in zip(*both, strict=True)),
            "unfinished",
        )
    if given.out:
        records = [
            {
                "server": name,
                "outcome": outcome(case, answer),
                "prompt": case.prompt,
                "text": answer.text,
                "refused": answer.refused,
            }
            for name, given_answers in answers.items()
            for case, answer in zip(cases, given_answers, strict=True)
        ]
        given.out.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
