"""What can go wrong in an engine, as its clients are told: `code` and `param` are what an API error needs."""

from __future__ import annotations


class EngineError(Exception):
    """The engine could not run this request."""

    code = "engine_error"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").splitlines()[0])
        self.param = param


class InvalidPrompt(EngineError):
    """The prompt cannot be used."""

    code = "invalid_value"


class TemplateFailed(EngineError):
    """The model's chat template does not accept these messages."""

    code = "template_error"


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer."""

    code = "context_length_exceeded"


class DecodeFailed(EngineError):
    """llama.cpp could not decode this step."""


class NoRoom(DecodeFailed):
    """The memory had no room for a step; nothing of it was computed."""


class ModelFailed(EngineError):
    """The model file cannot be loaded."""
