"""A backend under test: how its engine is started, and how a question becomes a request of its kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from core.models.capabilities import CAPABILITIES, Capabilities, Feature
from engine.config import BackendKind, EngineConfig
from engine.process.client import EngineClient
from engine.types import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Embedded,
    EmbedRequest,
    Finished,
    ForwardRequest,
    Priority,
    Request,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
    ToolMode,
)
from tests.support.recorder import SECONDS, Recorder


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question, in no backend's form. `schema` demands JSON; `tool` is the name of a function that must be called.

    `raw` is a prompt without a template, `begun` the beginning of the answer, and `note` an argument of the template.
    """

    text: str = "What is the capital of France?"
    id: str = "r"
    max_tokens: int = 24
    stream: bool = False
    stop: tuple[str, ...] = ()
    temperature: float = 0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    tool: str | None = None
    raw: str | tuple[int, ...] | None = None
    echo: bool = False
    begun: str = ""
    note: str = ""
    is_endless: bool = False
    exclusive: bool = False
    priority: Priority = Priority.CHAT


@contextmanager
def _nothing(_: Path) -> Iterator[Mapping[str, Any]]:
    yield {}


@dataclass(frozen=True, kw_only=True)
class BackendUnderTest:
    """`config` are fields of `EngineConfig`; `around` prepares what the backend needs, and yields more of them.

    `program` is the module or file of the engine. `samples`: does a temperature change the answers? With `crashes`, an engine
    ends by itself in a step of a request called `poison`; a test has to kill another one. `needs` are packages of an extra.
    """

    name: str
    kind: BackendKind
    config: Mapping[str, Any]
    able: Capabilities
    program: str = "engine.process.server"
    around: Callable[[Path], AbstractContextManager[Mapping[str, Any]]] = _nothing
    samples: bool = True
    crashes: bool = True
    needs: tuple[str, ...] = ()

    @contextmanager
    def engine(self, folder: Path) -> Iterator[EngineUnderTest]:
        """Start an engine and connect a client; both end with the block."""
        common = {"model": "m", "endpoint": str(folder), "backend": self.kind, "slots": 4, **self.config}
        with self.around(folder) as more:
            config = msgspec.json.encode(EngineConfig(**{**common, **more})).decode()
            wrapper = ["tests.conformance.crashing_server"] if self.crashes else []
            engine = EngineUnderTest(self, ["-m", *wrapper, self.program, config], folder)
            try:
                engine.client.wait_ready(SECONDS)
                yield engine
            finally:
                engine.kill()
                engine.client.close()

    def request(self, ask: Ask) -> Request | ForwardRequest:
        """The request of a question."""
        if self.kind is not BackendKind.OPENAI:
            return _request(ask)
        return ForwardRequest(
            id=ask.id,
            path="/v1/completions" if ask.raw is not None else "/v1/chat/completions",
            body=json.dumps(_body(ask)).encode(),
            stream=ask.stream,
            priority=ask.priority,
            exclusive=ask.exclusive,
        )

    def embedding(self, *inputs: str, dimensions: int | None = None) -> EmbedRequest | ForwardRequest:
        """The request for the vectors of texts."""
        if self.kind is not BackendKind.OPENAI:
            return EmbedRequest(id="e", inputs=[TextPrompt(text=text) for text in inputs], dimensions=dimensions)
        body = {"model": "upstream", "input": inputs} | ({"dimensions": dimensions} if dimensions else {})
        return ForwardRequest(id="e", path="/v1/embeddings", body=json.dumps(body).encode())


class EngineUnderTest:
    """An engine process and a client of it."""

    def __init__(self, backend: BackendUnderTest, command: list[str], folder: Path) -> None:
        self.backend = backend
        self._command = [sys.executable, *command]
        self._log = folder / "engine.log"
        self.client = EngineClient(str(folder), "tester")
        self.start()

    def start(self) -> None:
        """Start the process, again after `kill`."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def ensure_running(self) -> None:
        """Start the process again if it has ended."""
        if self._process.poll() is not None:
            self.start()
        self.client.wait_ready(SECONDS)

    def send(self, ask: Ask) -> Recorder:
        """Submit a question."""
        recorder = Recorder()
        self.client.submit(self.backend.request(ask), recorder)
        return recorder

    def ask(self, text: str = Ask.text, **given: Any) -> Finished:
        """Submit a question and wait for its answer."""
        return self.send(Ask(text=text, **given)).finished

    def embed(self, *inputs: str, dimensions: int | None = None) -> Embedded:
        """Compute vectors."""
        recorder, request = Recorder(), self.backend.embedding(*inputs, dimensions=dimensions)
        if isinstance(request, EmbedRequest):
            self.client.embed(request, recorder)
        else:
            self.client.submit(request, recorder)
        outcome = recorder.outcome
        assert isinstance(outcome, Embedded), outcome
        return outcome


def claims(kind: BackendKind, *, without: frozenset[Feature] = frozenset()) -> Capabilities:
    """The capabilities of a backend, without those that the model of the test lacks."""
    able = CAPABILITIES[kind]
    return Capabilities(words=able.words, features=able.features - without, keys=able.keys, instead=able.instead)


def _request(ask: Ask) -> Request:
    return Request(
        id=ask.id,
        prompt=_prompt(ask),
        sampling=SamplingParams(temperature=ask.temperature, seed=ask.seed, logit_bias=dict(ask.logit_bias)),
        max_tokens=ask.max_tokens,
        n=ask.n,
        stop=list(ask.stop),
        ignore_eos=ask.is_endless,
        logprobs=ask.logprobs,
        echo=ask.echo,
        constraint=Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(ask.schema)) if ask.schema else None,
        tool_choice=ToolChoice(mode=ToolMode.REQUIRED, name=ask.tool) if ask.tool else ToolChoice(),
        stream=ask.stream,
        priority=ask.priority,
        exclusive=ask.exclusive,
    )


def _prompt(ask: Ask) -> ChatPrompt | TextPrompt | TokenPrompt:
    if isinstance(ask.raw, str):
        return TextPrompt(text=ask.raw)
    if ask.raw is not None:
        return TokenPrompt(tokens=list(ask.raw))
    return ChatPrompt(
        messages=_messages(ask),
        tools=[{"type": "function", "function": _function(ask.tool)}] if ask.tool else [],
        template_kwargs={"note": ask.note} if ask.note else {},
        add_generation_prompt=not ask.begun,
        continue_final_message=bool(ask.begun),
    )


def _messages(ask: Ask) -> list[dict[str, Any]]:
    begun = [{"role": "assistant", "content": ask.begun}] if ask.begun else []
    return [{"role": "user", "content": ask.text}, *begun]


def _body(ask: Ask) -> dict[str, Any]:
    is_chat = ask.raw is None
    prompt = {"messages": _messages(ask)} if is_chat else {"prompt": ask.raw}
    body = {"model": "upstream", **prompt, "max_tokens": ask.max_tokens, "temperature": ask.temperature}
    optional: dict[str, Any] = {
        "n": ask.n if ask.n > 1 else None,
        "stop": list(ask.stop) or None,
        "seed": ask.seed,
        "logprobs": (ask.logprobs is not None) if is_chat else ask.logprobs,
        "top_logprobs": ask.logprobs if is_chat else None,
        "echo": ask.echo,
        "chat_template_kwargs": {"note": ask.note} if ask.note else None,
        "continue_final_message": bool(ask.begun),
        "add_generation_prompt": False if ask.begun else None,
        "logit_bias": {str(token): bias for token, bias in ask.logit_bias.items()} or None,
        "ignore_eos": ask.is_endless or None,
        "stream": ask.stream or None,
        "stream_options": {"include_usage": True} if ask.stream else None,
    }
    if ask.schema:
        optional["response_format"] = {"type": "json_schema", "json_schema": {"name": "f", "schema": ask.schema}}
    if ask.tool:
        optional["tools"] = [{"type": "function", "function": _function(ask.tool)}]
        optional["tool_choice"] = {"type": "function", "function": {"name": ask.tool}}
    return body | {name: value for name, value in optional.items() if value is not None}


def _function(name: str) -> dict[str, Any]:
    number = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    return {"name": name, "description": "Count.", "parameters": number}
