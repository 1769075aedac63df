"""Generators of the fuzzer: valid requests and lines, mutated.

Everything is drawn from a `random.Random`, so that Hypothesis can drive and shrink it, and a plain seed can run at full
speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
MAPPING: Final = {"model": "fake", "prompt": "{custom_id} {{ body }}", "schema": "a: x|y, b: number?", "where": "url"}
BATCHABLE: Final = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses")

# Written as JSON text, since Python's writer cannot produce some of them.
NUMBERS: Final = (
    "0", "-0", "-1", "1", "2", "16", "17", "0.5", "1.5", "1e2", "1E+2", "1e308", "1e309", "-1e309", "1e-400", "NaN",
    "Infinity", "-Infinity", "2147483647", "2147483648", "4294967296", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "1" + "0" * 400, "0.1e1", "-2.0",
)  # fmt: skip
TEXTS: Final = (
    "", " ", "\n", "a", "😀", "é" * 40, "\u2028\u2029\u0085", "\ufeff", "\ufffe", "\U0010ffff", "\x7f\x1b[31m",
    "../../etc/passwd", "' OR 1=1 --", "%s%n%d{0}{}", "{{7*7}}${7*7}<%= 7 %>", "<script>alert(1)</script>",
    "<|im_end|><|im_start|>system\n", "</s><s>", "http://127.0.0.1:1/", "file:///etc/passwd",
    "data:image/png;base64,AAAA", "null", "true", "0", "[]", "fake", "demo", "no-such-model", "x" * 300, "x" * 5000,
    "(" * 200, "(a+)+$", "\\", '"', "\u202eabc", "__proto__", "constructor",
)  # fmt: skip
SPELLED: Final = ('"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u00zz"', "'a'", "undefined", "")
NAMES: Final = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "max_tokens", "max_completion_tokens", "n", "stop", "seed",
    "frequency_penalty", "presence_penalty", "repeat_penalty", "logit_bias", "logprobs", "top_logprobs", "stream",
    "stream_options", "response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls", "user",
    "metadata", "store", "echo", "suffix", "best_of", "dimensions", "encoding_format", "chat_template", "grammar", "lora",
    "chat_template_kwargs", "ignore_eos", "instructions", "previous_response_id", "background", "include", "reasoning",
    "text", "truncation", "input", "prompt", "messages", "model", "__class__", "type", "audio", "modalities",
)  # fmt: skip
TOOL: Final = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A request as it is sent."""

    path: str
    content: bytes
    content_type: str


class Spelled(str):
    """JSON text that is written verbatim."""

    __slots__ = ()


def good_body(rng: Random, path: str, model: str = "fake") -> dict[str, Any]:
    """Return a valid body for the endpoint, with a short output."""
    text = rng.choice(("hello", "What is 2+2?", "😀 é", "a b c"))
    if path == "/v1/embeddings":
        body: dict[str, Any] = {"input": rng.choice((text, [text, "b"], [1, 2, 3], [[1], [2, 3]]))}
        extras: dict[str, Any] = {"dimensions": 4, "encoding_format": "base64"}
    elif path == "/v1/completions":
        body = {"prompt": rng.choice((text, [text, "b"], [104, 105])), "max_tokens": 3}
        extras = {"echo": True, "logprobs": 1, "stop": ["x"], "n": 2, "seed": 1}
    elif path == "/v1/responses":
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        body = {"input": rng.choice((text, [{"role": "user", "content": text}], [item])), "max_output_tokens": 3}
        extras = {"instructions": "Be brief.", "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}}
    else:
        parts = [{"type": "text", "text": text}]
        body = {"messages": [{"role": "user", "content": rng.choice((text, parts))}], "max_tokens": 3}
        extras = {
            "logit_bias": {"97": 5},
            "stop": "x",
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "tools": [TOOL],
            "tool_choice": "none",
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
            "structured_outputs": {"choice": ["a", "b"]},
            "metadata": {"a": "b"},
        }
    for name in rng.sample(sorted(extras), rng.randrange(3)):
        body[name] = extras[name]
    return {"model": model, **body}


def junk(rng: Random, depth: int = 2) -> Any:
    """Return a JSON value that the field does not expect."""
    kind = rng.randrange(8 if depth else 5)
    if kind == 0:
        return Spelled(rng.choice(NUMBERS[:12] if rng.random() < 0.6 else NUMBERS))
    if kind == 1:
        return rng.choice((None, True, False))
    if kind == 2:
        return Spelled(rng.choice(SPELLED)) if rng.random() < 0.3 else rng.choice(NAMES)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return [junk(rng, depth - 1) for _ in range(rng.choice((0, 1, 2, 3, 30)))]
    if kind == 6:
        return {rng.choice((*NAMES, *TEXTS)): junk(rng, depth - 1) for _ in range(rng.randrange(4))}
    return Spelled(deep(rng))


def deep(rng: Random) -> str:
    """Return a nested value: a little, nearly too much, or far too much."""
    depth = rng.choice((5, 20, 20, 100, 190, 210, 3000))
    return rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a value."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            found.append((value, key))
            places(inner, found)
    return found


def mutate(rng: Random, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body, changed in one place or a few: of many errors only the first would be found."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        rng.choice((_replace, _replace, _remove, _add, _add, _repeat))(rng, body)
    return body


def _replace(rng: Random, body: dict[str, Any]) -> None:
    if found := places(body, []):
        container, key = rng.choice(found)
        container[key] = junk(rng)


def _remove(rng: Random, body: dict[str, Any]) -> None:
    if found := places(body, []):
        container, key = rng.choice(found)
        del container[key]


def _add(rng: Random, body: dict[str, Any]) -> None:
    body[rng.choice(NAMES)] = junk(rng)


def _repeat(rng: Random, body: dict[str, Any]) -> None:
    lists = [container for container, _ in places(body, []) if isinstance(container, list) and container]
    if lists:
        container = rng.choice(lists)
        container.extend([container[0]] * rng.choice((1, 5, 200)))


def write(value: Any) -> str:
    """Write JSON with verbatim parts; a key may be written twice."""
    if isinstance(value, Spelled):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{write(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(write(inner) for inner in value) + "]"
    return json.dumps(value)


def damage(rng: Random, content: bytes) -> bytes:
    """Cut, swap, insert or double bytes."""
    if not content:
        return content
    at = rng.randrange(len(content))
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
    return rng.choice(
        (
            content[:at],
            content[:at] + noise + content[at + 1 :],
            content[:at] + noise + content[at:],
            content[:at] + content[at:] + content[at:],
            b"\xef\xbb\xbf" + content,
            content + noise,
            content.replace(b'"', b"'"),
            content.decode(errors="replace").encode("utf-16"),
        )
    )


def body_request(rng: Random, path: str | None = None) -> Fuzzed:
    """Return a JSON request to an endpoint that runs a model."""
    path = path or rng.choice((*BATCHABLE, "/v1/jobs"))
    content = write(mutate(rng, good_body(rng, path))).encode()
    if rng.random() < 0.15:
        content = damage(rng, content)
    kind = "application/json" if rng.random() < 0.97 else rng.choice(("text/plain", "", "application/json; charset=x"))
    return Fuzzed(path, content, kind)


def create_request(rng: Random, file_id: str) -> Fuzzed:
    """Return a mutated request for a batch, an upload in parts, or seldom a validation or mapping: each is a process."""
    good: dict[str, dict[str, Any]] = {
        "/v1/batches": {
            "input_file_id": file_id,
            "endpoint": CHAT,
            "completion_window": "24h",
            "metadata": {"a": "b"},
        },
        "/v1/uploads": {"purpose": "batch", "filename": "a.jsonl", "bytes": 9, "mime_type": "text/jsonl"},
        "/v1/batches/validate": {"input_file_id": file_id, "endpoint": CHAT},
        "/v1/batches/map": {"input_file_id": file_id, "mapping": MAPPING, "priority": 1},
        "/v1/batches/map/preview": {"input_file_id": file_id, "mapping": MAPPING, "sample": 2},
    }
    (path,) = rng.choices(list(good), weights=(10, 10, 1, 1, 1))
    return Fuzzed(path, write(mutate(rng, good[path])).encode(), "application/json")


def form_request(rng: Random, path: str = "/v1/files") -> Fuzzed:
    """Return a mutated multipart form: fields missing, doubled, renamed or cut; odd names and boundaries."""
    boundary = rng.choice(("x", "x", "x", "----b", "x" * 70, "a b", "é"))
    purpose = rng.choice(("user_data", "batch", "batch", "evals", *TEXTS[:8]))
    name = rng.choice(("in.jsonl", "in.jsonl", "a.txt", *TEXTS))
    parts = [
        ('form-data; name="purpose"', purpose.encode()),
        (f'form-data; name="file"; filename="{name}"', rng.choice((b"{}\n", b"", b"\0\xff" * 50, b"x" * 5000))),
        ('form-data; name="expires_after[anchor]"', b"created_at"),
        ('form-data; name="expires_after[seconds]"', write(Spelled(rng.choice(NUMBERS))).encode()),
    ]
    chosen = [rng.choice(parts) for _ in range(rng.randrange(5))] if rng.random() < 0.5 else parts[: rng.choice((2, 4))]
    content = b""
    for disposition, data in chosen:
        extra = rng.choice(("", "", "Content-Type: text/plain\r\n", "X-A: b\r\n" * 20, "Content-Type: \r\n"))
        content += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n{extra}\r\n".encode() + data + b"\r\n"
    content += rng.choice((f"--{boundary}--\r\n", f"--{boundary}--\r\n", f"--{boundary}", "")).encode()
    if rng.random() < 0.3:
        content = damage(rng, content)
    charset = rng.choice(("", "", "; charset=utf-8", "; charset=undefined", "; charset=utf-16", "; charset=idna"))
    return Fuzzed(path, content, f"multipart/form-data; boundary={boundary}{charset}")


def good_envelope(custom_id: str, url: str, body: str) -> bytes:
    """Return a line with this body, written verbatim."""
    return f'{{"custom_id": {json.dumps(custom_id)}, "method": "POST", "url": "{url}", "body": {body}}}'.encode()


def is_json(text: str) -> bool:
    """Return whether the parser of the service accepts this text."""
    from core.strict_json import InvalidJson, parse_json

    try:
        return isinstance(parse_json(text.encode()), dict)
    except InvalidJson:
        return False


def line_with_odd_body(rng: Random, custom_id: str, url: str) -> bytes:
    """Return a line with a valid envelope, so that one of the two result files must contain it once."""
    body = write(mutate(rng, good_body(rng, url)))
    while not is_json(body) or '"stream": true' in body or '"stream":true' in body:
        body = write(mutate(rng, good_body(rng, url)))
    return good_envelope(custom_id, url, body)


def odd_line(rng: Random, number: int, url: str) -> bytes:
    """Return a line that may be wrong anywhere."""
    line = {"custom_id": f"l{number}", "method": "POST", "url": url, "body": good_body(rng, url)}
    changed: Callable[[Random, dict[str, Any]], dict[str, Any]] = mutate
    content = write(changed(rng, line)).encode()
    return damage(rng, content) if rng.random() < 0.4 else content
