"""Base schemas of bodies: the model, and the parameters of generated text.

Defaults that a model sets are `None` here. Fields of OpenAI's that may be ignored are not listed.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from core.models.fields.sampling import SamplingFields
from core.models.model_files import Parameters
from core.schemas.base import RequestModel, Unsupported
from core.schemas.objects import ResponseModel
from core.schemas.response_format import ResponseFormat, StructuredOutputs

MAX_CHOICES: Final = 16
MAX_BIASES: Final = 300
MAX_STOPS: Final = 128

# Settings of the operator, refused in requests.
OPERATOR_ONLY: Final = ("chat_template", "api_base", "base_url", "n_discard", "lora", "mmproj")
# Fields for which null and the listed values mean "off"; any other value is refused.
UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
    "guided_json": ("",),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "json_schema": ("",),
    "grammar": ("",),
    "n_predict": (),
    "num_predict": (),
    "max_new_tokens": (),
    "max_output_tokens": (),
    "use_beam_search": (False,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}
INSTEAD: Final = {
    "documents": "messages",
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "grammar": "structured_outputs",
    "json_schema": "response_format",
    "repetition_penalty": "repeat_penalty",
    "best_of": "n",
    "max_completion_tokens": "max_tokens",
    "top_logprobs": "logprobs",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
}

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,6})$")]  # a token id as a JSON key
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ModelRequest(RequestModel):
    """A body for a model. `unsupported` has the fields that its endpoint refuses, with the values that are harmless, and
    `instead` the fields to use; fields of `operator_only` are refused with any value."""

    operator_only: ClassVar[tuple[str, ...]] = OPERATOR_ONLY
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}  # Any: JSON values
    instead: ClassVar[dict[str, str]] = INSTEAD

    model: str = Field(min_length=1, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: object) -> object:
        """Refuse fields of the operator, and fields that would have no effect."""
        if not isinstance(body, dict) or _refusable(cls).isdisjoint(body):
            return body
        for name in cls.operator_only:
            if body.get(name) is not None:
                message = f"'{name}' cannot be set by a request; it belongs to the server's model file."
                raise Unsupported(message, param=name)
        for name, harmless in cls.unsupported.items():
            if body.get(name) is not None and body[name] not in harmless:
                instead = f"; use '{cls.instead[name]}'" if name in cls.instead else ""
                raise Unsupported(f"'{name}' with this value is not supported by this server{instead}.", param=name)
        return body

    @property
    def is_stream(self) -> bool:
        """Is the answer streamed?"""
        return False

    @property
    def include_usage(self) -> bool:
        """Does the stream end with a usage chunk?"""
        return False

    @property
    def max_answer_tokens(self) -> int | None:
        """The limit of tokens of one answer, if the body sets one."""
        return None

    @property
    def num_answers(self) -> int:
        """The number of answers that are generated."""
        return 0


@cache
def _refusable(kind: type[ModelRequest]) -> frozenset[str]:
    """The fields of which an endpoint refuses some or all values."""
    return frozenset((*kind.operator_only, *kind.unsupported))


def _few_biases(value: object) -> object:
    """Refuse more than MAX_BIASES pairs before each is checked."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens may have a bias, not {len(value)}")
    return value


class GenerationBody(SamplingFields, ModelRequest):
    """A body that generates text. `default_tokens` is the limit when neither the body nor the model file sets one."""

    default_tokens: ClassVar[int | None] = None

    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logit_bias: Annotated[dict[TokenKey, Bias], BeforeValidator(_few_biases), Field(max_length=MAX_BIASES)] | None = (
        None
    )
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return value

    @field_validator("structured_outputs")
    @classmethod
    def _is_alone(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        other = info.data.get("response_format")
        if value is not None and other is not None and other.type != "text":
            raise ValueError("'response_format' and 'structured_outputs' cannot be used together")
        return value

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def is_stream(self) -> bool:
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_answers(self) -> int:
        return self.n or 1


class GenerationParameters(ResponseModel):
    """The defaults are neutral; with `max_tokens` of null, an answer ends with the model's stop or a full context."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    max_tokens: int | None = None


def effective_parameters(body: GenerationBody, model: Parameters) -> GenerationParameters:
    """The value of the body, else of the model file, else the neutral one.

    Workers send them to the engine, and the api shows them with a stored answer.
    """
    most = (body.max_answer_tokens, model.max_tokens, body.default_tokens)
    return GenerationParameters(
        **effective_sampling(body, model), max_tokens=next((each for each in most if each is not None), None)
    )


def effective_sampling(body: GenerationBody, model: Parameters) -> dict[str, Any]:  # Any: the types of the parameters
    """Those of the effective parameters that the body or the model file sets, without the limit of tokens."""
    found = {}
    for name in _SAMPLING:
        if (value := getattr(body, name)) is not None or (value := getattr(model, name)) is not None:
            found[name] = value
    return found


_SAMPLING: Final = tuple(name for name in GenerationParameters.model_fields if name != "max_tokens")
