"""Names of span attributes: those of OpenTelemetry's conventions for generative AI and for messaging, and our own.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/. Those of HTTP are set by FastAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

AttributeValue = str | bool | int | float | list[str]
Attributes = Mapping[str, AttributeValue]


class Kind(Enum):
    """The kind of a span, in OpenTelemetry's words: the side of a call, or of a message."""

    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"


OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK_SECONDS: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
IS_STREAM: Final = "gen_ai.request.stream"
CHOICES: Final = "gen_ai.request.choice.count"
REQUEST_NUMBERS: Final = {  # fields of a body that are recorded when they are numbers
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
}
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"

ERROR_TYPE: Final = "error.type"
URL_PATH: Final = "url.path"
URL_QUERY: Final = "url.query"

REQUEST_ID: Final = "millrace.request.id"
JOB: Final = "millrace.job.id"
BATCH: Final = "millrace.batch.id"
SHARD: Final = "millrace.shard.id"
TENANT: Final = "millrace.tenant.id"
ATTEMPT: Final = "millrace.attempt"
STATE: Final = "millrace.state"
LINES: Final = "millrace.lines"
LINES_FAILED: Final = "millrace.lines.failed"
