"""Chat with a model in the terminal, without database, queue or sockets: `python -m engine MODEL.gguf`.

`--fake` needs no model. `/new` starts a new conversation; an empty line or Ctrl-D ends the program.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from engine.config import BackendKind, EngineConfig
from engine.errors import EngineError
from engine.inputs.input_processor import InputProcessor
from engine.inputs.prompt_encoder import PromptEncoder
from engine.loop import AddRequest, EngineLoop, Output
from engine.process.server import load_backend
from engine.structured.compiler import GrammarCompiler
from engine.types import ChatPrompt, Delta, Failed, Finished, Request, SamplingParams

_CLIENT = "terminal"


class Conversation:
    """One conversation with an engine that runs in this thread."""

    def __init__(self, config: EngineConfig, sampling: SamplingParams) -> None:
        backend = load_backend(config)
        encoder = PromptEncoder(backend.tokenizer, template=None, context_size=config.context_size)
        grammars = GrammarCompiler(backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab)
        self.warning = encoder.templates.warning if config.backend is not BackendKind.FAKE else None
        self._input_processor = InputProcessor(encoder, grammars, stopwords=[], context_size=config.context_size)
        self._engine = EngineLoop(backend, config, self._collect)
        self._sampling = sampling
        self._messages: list[dict[str, Any]] = []  # Any: fields a template may use
        self._ended: Finished | Failed | None = None

    def clear(self) -> None:
        """Start a new conversation."""
        self._messages.clear()

    def send(self, text: str) -> Finished | Failed:
        """Send a message and print the answer as it is generated; raises EngineError for a prompt that does not fit."""
        messages = [*self._messages, {"role": "user", "content": text}]
        request = Request(id="1", prompt=ChatPrompt(messages=messages), sampling=self._sampling, stream=True)
        self._engine.inbox.put(AddRequest(self._input_processor.process(_CLIENT, request)))
        self._ended = None
        while self._ended is None:
            self._engine.run_once()
        if isinstance(self._ended, Finished):
            self._messages = [*messages, {"role": "assistant", "content": self._ended.text}]
        return self._ended

    def _collect(self, _: str, items: list[Output]) -> None:
        for item in items:
            if isinstance(item, Delta):
                print(item.text, end="", flush=True)
            elif isinstance(item, (Finished, Failed)):
                self._ended = item


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m engine", description="Chat with a GGUF model in this terminal.")
    parser.add_argument("model", nargs="?", default="", help="a GGUF file, or a folder in the format of Hugging Face")
    parser.add_argument("--fake", action="store_true", help="answer without a model")
    parser.add_argument("--context-size", type=int, default=2048, help="tokens of prompt and answer together")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU; -1 is all")
    parser.add_argument("--threads", type=int, default=0, help="0 is one per core")
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    if not arguments.model and not arguments.fake:
        parser.error("name a GGUF file, or use --fake")
    config = EngineConfig(
        model="terminal",
        endpoint="",
        backend=_backend(arguments.model, is_fake=arguments.fake),
        model_path=arguments.model,
        context_size=arguments.context_size,
        slots=1,
        gpu_layers=arguments.gpu_layers,
        threads=arguments.threads,
    )
    try:
        conversation = Conversation(config, SamplingParams(temperature=arguments.temperature))
    except EngineError as error:
        sys.exit(str(error))
    if conversation.warning is not None:
        print(conversation.warning, file=sys.stderr)
    while text := _read():
        if text == "/new":
            conversation.clear()
            continue
        try:
            ended = conversation.send(text)
        except EngineError as error:
            print(error)
            continue
        print(f"\n{ended.message}" if isinstance(ended, Failed) else "")


def _backend(model: str, *, is_fake: bool) -> BackendKind:
    if is_fake:
        return BackendKind.FAKE
    return BackendKind.TRANSFORMERS if Path(model).is_dir() else BackendKind.LLAMA


def _read() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main()
