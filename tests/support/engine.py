"""Engines and sequences for tests; no model needed."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from engine.backends.base import Backend
from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.config import Backend as BackendKind
from engine.config import EngineConfig
from engine.inputs.input_processor import Intake
from engine.inputs.prompt_encoder import PromptEncoder
from engine.loop import Add, Engine, Output
from engine.outputs.output_stream import AnswerSpec
from engine.scheduler.sequence import Sequence
from engine.structured.compiler import Grammars
from engine.types import ChatPrompt, Finished, FinishReason, Priority, Request, Sampling


def make_sequence(request_id: str, tokens: list[int], **given: object) -> Sequence:
    values: dict[str, object] = {
        "client": "c",
        "request_id": request_id,
        "tokens": list(tokens),
        "num_prompt_tokens": len(tokens),
        "max_tokens": None,
        "sampling": Sampling(),
        "spec": AnswerSpec(),
        "ignore_eos": False,
        "stream": False,
        "priority": Priority.CHAT,
    }
    return Sequence(**{**values, **given})  # type: ignore[arg-type]


def chat(text: str, request_id: str = "r", **given: object) -> Request:
    prompt = ChatPrompt(messages=[{"role": "user", "content": text}])
    return Request(id=request_id, prompt=prompt, sampling=Sampling(temperature=0), **given)  # type: ignore[arg-type]


_grammars: WeakKeyDictionary[Backend, dict[bool, Grammars]] = WeakKeyDictionary()


def grammars_of(backend: Backend, *, jump_forward: bool) -> Grammars:
    """One for each backend: its vocabulary takes a while."""
    known = _grammars.setdefault(backend, {})
    if jump_forward not in known:
        known[jump_forward] = Grammars(
            backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab, jump_forward=jump_forward
        )
    return known[jump_forward]


class Bench:
    """An engine that is stepped by hand, and everything it said."""

    def __init__(self, backend: Backend | None = None, **config: object) -> None:
        values: dict[str, object] = {"model": "m", "endpoint": "", "backend": BackendKind.FAKE, "slots": 4}
        self.config = EngineConfig(**{**values, **config})  # type: ignore[arg-type]
        self.backend = backend or FakeBackend(FakeDecoder(slots=self.config.slots, spare_slots=1))
        self.encoder = PromptEncoder(
            self.backend.tokenizer, template=self.config.chat_template, context_size=self.config.context_size
        )
        self.intake = Intake(
            self.encoder,
            grammars_of(self.backend, jump_forward=self.config.jump_forward),
            stopwords=list(self.config.stopwords),
            context_size=self.config.context_size,
        )
        self.outputs: list[Output] = []
        self.engine = Engine(self.backend, self.config, lambda _, items: self.outputs.extend(items), idle=lambda: None)

    def add(self, request: Request) -> None:
        self.engine.inbox.put(Add(self.intake.sequences("c", request)))

    def run(self, max_steps: int = 100_000) -> dict[str, Finished]:
        """Until nothing is left; returns how each request finished. `outputs` holds everything said meanwhile."""
        self.outputs.clear()
        for _ in range(max_steps):
            if not self.engine.turn():
                break
            self.engine.scheduler.check_integrity()
        return {item.request_id: item for item in self.outputs if isinstance(item, Finished)}

    def encoder_tokens(self, text: str) -> list[int]:
        return self.backend.tokenizer.encode(text, special=False, add_bos=False)

    def ask(self, text: str, **given: object) -> Finished:
        self.add(chat(text, **given))
        return self.run()["r"]


__all__ = ["Bench", "FinishReason", "chat", "make_sequence"]
