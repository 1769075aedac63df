"""Capabilities of each backend: what requests may ask of it, and which keys of a model file it reads.

The api refuses a request, and the batch checker a line, before a job is queued; `FEATURES` has the fields that ask for one.
`docs/backends.md` shows the table, and `tests/conformance` holds every backend to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.models.engine_options import BackendKind
from core.models.fields.placement_fields import PlacementFields
from core.models.fields.sampling import SamplingFields
from core.models.fields.transformers_fields import TransformersFields
from core.models.fields.upstream_fields import UpstreamFields


class Feature(StrEnum):
    """Something that not every backend does."""

    TEMPLATE_ARGUMENTS = "template_arguments"
    CONTINUED_MESSAGE = "continued_message"
    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    ECHO = "echo"
    CONSTRAINTS = "constraints"
    TOOLS = "tools"
    SEEDS = "seeds"
    LOGIT_BIAS = "logit_bias"
    TOKEN_PROMPTS = "token_prompts"  # noqa: S105 - token ids
    TOKEN_COUNTS = "token_counts"  # noqa: S105 - numbers of tokens
    IMAGES = "images"
    SUFFIX = "suffix"
    EMBEDDINGS = "embeddings"
    PREFIX_CACHE = "prefix_cache"
    SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a body that ask for a feature, and the end of the sentence about a backend that lacks it."""

    fields: tuple[str, ...]
    lacking: str


# A field that is null, false or empty asks for nothing. A feature without fields is asked for by an endpoint, or by a kind of
# value; one that is not listed is the way of an engine. Adapters, templates, context shift and the like are keys of a model file.
FEATURES: Final[Mapping[Feature, Asked]] = {
    Feature.TEMPLATE_ARGUMENTS: Asked(("chat_template_kwargs",), "takes no arguments of a chat template"),
    Feature.CONTINUED_MESSAGE: Asked(("continue_final_message",), "does not continue a message"),
    Feature.LOGPROBS: Asked(("logprobs",), "returns no log probabilities of tokens"),
    Feature.ECHO: Asked(("echo",), "does not repeat the prompt"),
    Feature.CONSTRAINTS: Asked(("response_format", "structured_outputs"), "does not hold an answer to a format"),
    Feature.TOOLS: Asked(("tools",), "calls no tools"),
    Feature.SEEDS: Asked(("seed",), "does not repeat an answer by its seed"),
    Feature.LOGIT_BIAS: Asked(("logit_bias",), "does not change the probability of single tokens"),
    Feature.SUFFIX: Asked(("suffix",), "does not fill a gap before a suffix"),
    Feature.PROMPT_LOGPROBS: Asked((), "returns no log probabilities of the prompt"),
    Feature.EMBEDDINGS: Asked((), "does not embed"),
    Feature.TOKEN_PROMPTS: Asked((), "takes prompts as text only, not as token ids"),
    Feature.TOKEN_COUNTS: Asked((), "does not count the tokens of a prompt beforehand"),
    Feature.IMAGES: Asked((), "reads text only"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """`words` name the backend in a sentence. `keys` are those of a model file that it reads, with `parameters.` before those of
    the parameters; `instead` has the advice on others.
    """

    words: str
    features: frozenset[Feature]
    keys: frozenset[str]
    instead: Mapping[str, str]

    def __contains__(self, feature: Feature) -> bool:
        return feature in self.features


# Read by all backends, whether their engine computes or passes requests on.
_COMMON: Final = frozenset(
    {"name", "aliases", "backend", "parameters.model", "context_size", "load", "keep_alive_seconds", "pinned"}
    | {"memory_bytes", "replicas", "devices", "fallback", "weight"}
)
_SAMPLING: Final = frozenset(f"parameters.{name}" for name in (*SamplingFields.model_fields, "seed"))
_COMPUTED: Final = _SAMPLING | {
    *("chat_template", "stopwords", "embeddings", "pooling", "slots", "spare_slots", "threads", "threads_batch"),
    *("batch_tokens", "prefill_tokens", "jump_forward"),
}
_LLAMA: Final = frozenset(PlacementFields.model_fields) | {
    *("lora", "context_shift", "speculation", "gpu_layers", "ubatch_tokens", "kv_layout"),
    *("cache_type_k", "cache_type_v", "flash_attention"),
}
_OF_THE_SERVER: Final = "the server upstream decides that"
_TEXT: Final = frozenset(Feature) - {Feature.IMAGES, Feature.SUFFIX}
_NO_KEYS: Final[Mapping[str, str]] = {}
_WEIGHTS: Final = {"model": "write `parameters: {model: FILE.gguf}`"}
_UPSTREAM_INSTEAD: Final = {
    "slots": "max_concurrency is the number of requests at a time",
    "lora": "name the adapter in model, as the server calls it",
    "stopwords": "bodies are passed on as they came; set stop in the requests",
}

CAPABILITIES: Final[Mapping[BackendKind, Capabilities]] = {
    BackendKind.LLAMA: Capabilities(
        words="llama.cpp", features=_TEXT, keys=_COMMON | _COMPUTED | _LLAMA, instead=_WEIGHTS
    ),
    BackendKind.FAKE: Capabilities(
        words="the fake backend",
        features=_TEXT,
        keys=_COMMON | _COMPUTED | _LLAMA | {"step_seconds", "load_seconds"},
        instead=_NO_KEYS,
    ),
    BackendKind.TRANSFORMERS: Capabilities(
        words="transformers",
        features=_TEXT,
        keys=_COMMON | (_COMPUTED - {"threads_batch"}) | frozenset(TransformersFields.model_fields),
        instead={
            "lora": "merge the adapter into the weights first",
            "gpu_layers": "the whole model is on its device; name it in devices",
        },
    ),
    BackendKind.OPENAI: Capabilities(
        words="a server upstream",
        features=(frozenset(FEATURES) | {Feature.PREFIX_CACHE, Feature.SLOTS}) - {Feature.TOKEN_COUNTS},  # the server's
        keys=_COMMON | {"embeddings"} | frozenset(UpstreamFields.model_fields),
        instead=dict.fromkeys(_SAMPLING, "bodies are passed on as they came; set it in the requests")
        | dict.fromkeys((_COMPUTED | _LLAMA) - _SAMPLING - _COMMON - {"embeddings"}, _OF_THE_SERVER)
        | _UPSTREAM_INSTEAD,
    ),
}


def refusal(model: str, backend: BackendKind, feature: Feature) -> str:
    """The message of a request for a feature that the backend of a model lacks."""
    able = [f"`{kind}`" for kind, each in CAPABILITIES.items() if feature in each and kind is not BackendKind.FAKE]
    advice = f" Use a model with backend {' or '.join(able)}." if able else ""
    return f"The model '{model}' runs on {CAPABILITIES[backend].words}, which {FEATURES[feature].lacking}.{advice}"


def check_keys(backend: BackendKind, keys: Iterable[str]) -> None:
    """Raise ValueError for the first of the keys that a backend does not read; it begins with the key."""
    able = CAPABILITIES[backend]
    for key in keys:
        if key in able.keys:
            continue
        if key in able.instead:
            raise ValueError(f"{key}: is not read by backend: {backend}; {able.instead[key]}")
        owners = [str(kind) for kind, each in CAPABILITIES.items() if key in each.keys and kind is not BackendKind.FAKE]
        raise ValueError(
            f"{key}: is for backend: {' or '.join(owners) or BackendKind.FAKE}, and this model has backend: {backend}"
        )
