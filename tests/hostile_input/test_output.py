"""B66: output of a model that is not valid text. A logit bias forces the output here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.settings import ROOT
from engine.backends.llama.tokenizer import load_vocabulary
from tests.hostile_input.target import CHAT, Target, batch_line, chat

SAID: dict[str, tuple[int, str]] = {
    "B66-nul": (0, ""),
    "B66-half-a-character": (0xC3, "\ufffd" * 6),
    "B66-a-byte-of-nothing": (0xFF, "\ufffd" * 6),
    "B66-half-a-surrogate": (0xED, "\ufffd" * 6),
    "B66-escape": (0x1B, "\x1b" * 6),
    "B66-line-ends": (0x0A, "\n" * 6),
    "B66-quotes": (0x22, '"' * 6),
    "B66-backslashes": (0x5C, "\\" * 6),
    "B66-angles": (0x3C, "<" * 6),
}


@pytest.fixture(scope="module")
def tokens() -> dict[int, int]:
    """Return the demo model's token of each byte."""
    vocabulary = load_vocabulary(ROOT / "models" / "demo.gguf")
    pieces = ((vocabulary.piece(token), token) for token in range(vocabulary.num_vocab))
    return {piece[0]: token for piece, token in pieces if len(piece) == 1}


def forced_output(token: int, **fields: Any) -> dict[str, Any]:
    """Return a body with a bias that makes the output this token, six times."""
    return chat(model="demo", logit_bias={str(token): 100}, max_tokens=6, ignore_eos=True, **fields)


def content_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("byte", "expected"), SAID.values(), ids=SAID.keys())
def test_bytes_that_are_not_text_become_text_and_are_stored(
    target: Target, tokens: dict[int, int], byte: int, expected: str
) -> None:
    """Plain, streamed, in a batch, and read again: the same text."""
    token = tokens[byte]
    plain = target.http.post(CHAT, json=forced_output(token))
    assert plain.status_code == 200, plain.text
    assert content_of(plain.json()).replace("\0", "") == expected
    assert "\\u0000" not in plain.text
    streamed = target.http.post(CHAT, json=forced_output(token, stream=True)).text
    events = [event.removeprefix("data: ") for event in streamed.split("\n\n") if event.startswith("data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(deltas) == content_of(plain.json())
    batch = target.batch_of(batch_line("a", body=forced_output(token)))
    assert batch.status == "completed"
    (line,) = target.results(batch.output_file_id)
    assert content_of(line["response"]["body"]) == content_of(plain.json())
    again = target.http.get(f"/v1/batches/{batch.id}/requests/a").json()
    assert content_of(again["response"]) == content_of(plain.json())


def test_a_script_is_text_in_json_and_never_html(target: Target) -> None:
    """B66: the bias forces the script; no response is HTML."""
    script = "</script><script>alert(1)</script>"
    answer = target.http.post(CHAT, json=chat(max_tokens=60, structured_outputs={"choice": [script]}))
    assert content_of(answer.json()) == script
    assert answer.headers["content-type"] == "application/json"
    batch = target.batch_of(batch_line("a", body=chat(max_tokens=60, structured_outputs={"choice": [script]})))
    content = target.http.get(f"/v1/files/{batch.output_file_id}/content")
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-disposition"].startswith("attachment")
    assert content_of(json.loads(content.content)["response"]["body"]) == script
