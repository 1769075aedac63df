"""Errors of an engine, as its clients get them: `code` and `param` become those of an API error."""

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


class TemplateTooSlow(TemplateFailed):
    """The model's chat template takes too long for these messages."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer."""

    code = "context_length_exceeded"


class InvalidConstraint(EngineError):
    """The required form of the answer cannot be parsed, is not supported, or is too large."""

    code = "invalid_schema"


class ConstraintFailed(EngineError):
    """The answer could not be held to its constraint."""

    code = "constraint_error"


class SandboxUnavailable(ConstraintFailed):
    """The process that checks constraints did not start."""


class DecodeFailed(EngineError):
    """The backend could not decode this step."""


class OutOfKvMemory(DecodeFailed):
    """The memory had no room for a step; nothing of it was computed."""


class DeviceLost(BaseException):
    """The device failed in a way that only a new process mends; no thread goes on after it."""


class ModelFailed(EngineError):
    """The model file cannot be loaded."""


class ModelMissing(ModelFailed):
    """A file of the model is not there."""
