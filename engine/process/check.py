"""Check of model files before an engine starts: reads their metadata and vocabularies, not their weights.

`python -m engine.process.check` reads a JSON list of `ModelCheck` from stdin, and prints a JSON list of `ModelRemarks`.
"""

from __future__ import annotations

import sys

import msgspec

from engine.backends.vocabularies import load_vocabulary
from engine.config import BackendKind
from engine.errors import EngineError
from engine.inputs.prompt_encoder import PromptEncoder


class ModelCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A model file; `template` is the operator's, and `is_chat` is false for a model that embeds."""

    name: str
    path: str
    backend: BackendKind = BackendKind.LLAMA
    trust_remote_code: bool = False
    template: str | None = None
    is_chat: bool = True


class ModelRemarks(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: the reason why its engine would not start; `warning`: see `engine.process.protocol.EngineInfo`."""

    name: str
    error: str | None = None
    warning: str | None = None


def check_model(model: ModelCheck) -> ModelRemarks:
    """Load the vocabulary, and compile the chat template."""
    try:
        loaded = load_vocabulary(model.backend, model.path, trust_remote_code=model.trust_remote_code)
        encoder = PromptEncoder(loaded.tokenizer, template=model.template, context_size=512)
    except EngineError as error:
        return ModelRemarks(name=model.name, error=str(error))
    return ModelRemarks(name=model.name, warning=encoder.templates.warning if model.is_chat else None)


def main() -> None:
    """Check the models that stdin names."""
    models = msgspec.json.decode(sys.stdin.buffer.read(), type=list[ModelCheck])
    sys.stdout.buffer.write(msgspec.json.encode([check_model(model) for model in models]))


if __name__ == "__main__":
    main()
