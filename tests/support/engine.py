"""Engines and sequences for tests that need no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from engine.backends.base import Backend
from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.config import BackendKind, EngineConfig
from engine.inputs.input_processor import InputProcessor
from engine.inputs.prompt_encoder import PromptEncoder
from engine.loop import AddEmbedding, AddRequest, EngineLoop, Output
from engine.outputs.output_stream import OutputSpec
from engine.scheduler.sequence import Sequence
from engine.structured.compiler import GrammarCompiler
from engine.turn import Turn
from engine.types import ChatPrompt, EmbedRequest, Finished, Priority, Request, SamplingParams
from tests.support.clock import Clock


def make_sequence(request_id: str, tokens: list[int], **given: object) -> Sequence:
    values: dict[str, object] = {
        "client": "c",
        "request_id": request_id,
        "tokens": list(tokens),
        "num_prompt_tokens": len(tokens),
        "max_tokens": None,
        "sampling": SamplingParams(),
        "spec": OutputSpec(),
        "ignore_eos": False,
        "stream": False,
        "priority": Priority.CHAT,
    }
    return Sequence(**{**values, **given})  # type: ignore[arg-type]


def chat(text: str, request_id: str = "r", **given: Any) -> Request:
    prompt = ChatPrompt(messages=[{"role": "user", "content": text}])
    return Request(id=request_id, prompt=prompt, sampling=SamplingParams(temperature=0), **given)


_grammars: WeakKeyDictionary[Backend, dict[bool, GrammarCompiler]] = WeakKeyDictionary()


def grammars_of(backend: Backend, *, jump_forward: bool) -> GrammarCompiler:
    """One compiler for each backend, since its vocabulary takes a while to build."""
    known = _grammars.setdefault(backend, {})
    if jump_forward not in known:
        known[jump_forward] = GrammarCompiler(
            backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab, jump_forward=jump_forward
        )
    return known[jump_forward]


class Bench:
    """An engine that the test runs step by step, and all its outputs. Steps take no time unless the test moves its `clock`."""

    def __init__(
        self,
        backend: Backend | None = None,
        turn: Turn | None = None,
        clock: Callable[[], float] | None = None,
        **config: object,
    ) -> None:
        values: dict[str, object] = {"model": "m", "endpoint": "", "backend": BackendKind.FAKE, "slots": 4}
        self.config = EngineConfig(**{**values, **config})  # type: ignore[arg-type]
        self.backend = backend or FakeBackend(FakeDecoder(slots=self.config.slots, spare_slots=1))
        self.encoder = PromptEncoder(
            self.backend.tokenizer, template=self.config.chat_template, context_size=self.config.context_size
        )
        self.input_processor = InputProcessor(
            self.encoder,
            grammars_of(self.backend, jump_forward=self.config.jump_forward),
            stopwords=list(self.config.stopwords),
            context_size=self.config.context_size,
        )
        self.outputs: list[Output] = []
        self.engine = EngineLoop(
            self.backend, self.config, lambda _, items: self.outputs.extend(items), turn=turn, clock=clock or Clock()
        )

    def add(self, request: Request) -> None:
        self.engine.inbox.put(AddRequest(self.input_processor.process("c", request)))

    def embed(self, request_id: str, *prompts: list[int], priority: Priority = Priority.CHAT) -> None:
        request = EmbedRequest(id=request_id, inputs=[], priority=priority)
        self.engine.inbox.put(AddEmbedding("c", request, list(prompts)))

    def run(self, max_steps: int = 100_000) -> dict[str, Finished]:
        """Run until nothing is left; return how each request finished. `outputs` holds all outputs of the run."""
        self.outputs.clear()
        for _ in range(max_steps):
            if not self.engine.run_once():
                break
            self.engine.scheduler.check_integrity()
        return {item.request_id: item for item in self.outputs if isinstance(item, Finished)}

    def encoder_tokens(self, text: str) -> list[int]:
        return self.backend.tokenizer.encode(text, special=False, add_bos=False)

    def ask(self, text: str, **given: Any) -> Finished:
        self.add(chat(text, **given))
        return self.run()["r"]
