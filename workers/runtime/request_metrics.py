"""Request metrics: outcomes, latencies and usage of the requests that a consumer records, by model.

The meaning is that of OpenTelemetry's conventions for generative AI, and so are the buckets, with a few more.
`docs/monitoring.md` has the names of both.
"""

from __future__ import annotations

import threading
from typing import Final

from core.error_codes import LINES
from core.states import JobState
from engine.types import Finished
from workers.runtime.recorder import Metric, Recorder

OTHER: Final = "other"
_DEFAULT_TENANTS: Final = 100
_OF_MODEL: Final = ("model", "class")
_OF_TENANT: Final = ("model", "tenant")

REQUESTS: Final = Metric(
    "millrace_requests", "Requests and batch lines with a recorded end, by its state.", (*_OF_MODEL, "state")
)
FAILURES: Final = Metric(
    "millrace_request_failures", "Those that failed, by the code of their error.", (*_OF_MODEL, "code")
)
REQUEST_SECONDS: Final = Metric(
    "millrace_request_seconds",
    "From the engine's receipt of a request to its last token, with the wait for a slot; of those that ended well.",
    _OF_MODEL,
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68),
)
FIRST_TOKEN_SECONDS: Final = Metric(
    "millrace_time_to_first_token_seconds",
    "From the engine's receipt of a request to its first token, with the wait for a slot.",
    _OF_MODEL,
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
OUTPUT_TOKEN_SECONDS: Final = Metric(
    "millrace_time_per_output_token_seconds",
    "Mean time between two tokens after the first, of requests with one answer.",
    _OF_MODEL,
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
USAGE_REQUESTS: Final = Metric(
    "millrace_usage_requests", "Requests and lines that count in a tenant's usage.", _OF_TENANT
)
USAGE_PROMPT: Final = Metric("millrace_usage_prompt_tokens", "Tokens of their prompts.", _OF_TENANT)
USAGE_CACHED: Final = Metric("millrace_usage_cached_tokens", "Those of them from the prefix cache.", _OF_TENANT)
USAGE_COMPLETION: Final = Metric("millrace_usage_completion_tokens", "Tokens of their answers.", _OF_TENANT)
USAGE_REASONING: Final = Metric("millrace_usage_reasoning_tokens", "Those of them that are reasoning.", _OF_TENANT)

REQUEST_METRICS: Final = (
    REQUESTS, FAILURES, REQUEST_SECONDS, FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS,
    USAGE_REQUESTS, USAGE_PROMPT, USAGE_CACHED, USAGE_COMPLETION, USAGE_REASONING,
)  # fmt: skip


class RequestMetrics:
    """Records the requests of one class, `chat` or `batch`. The first `max_tenants` tenants have a label of their own, all others
    share `other`, so that the number of series has a limit.
    """

    def __init__(
        self, kind: str = "chat", *, max_tenants: int = _DEFAULT_TENANTS, recorder: Recorder | None = None
    ) -> None:
        self.recorder = recorder or Recorder()
        self._kind = kind
        self._max_tenants = max_tenants
        self._tenants: set[str] = set()
        self._lock = threading.Lock()

    def add_end(self, model: str, state: JobState, code: str | None = None, *, number: int = 1) -> None:
        """Count recorded ends; `code` is that of its error. Codes of a server upstream that are not ours count as `other`."""
        self.recorder.add(REQUESTS, (model, self._kind, str(state)), number)
        if state is JobState.FAILED:
            self.recorder.add(FAILURES, (model, self._kind, code if code in LINES else OTHER), number)

    def add_latency(self, model: str, seconds: float, outcome: object) -> None:
        """Record the time of a request that ended well, and that of its tokens where it generated some."""
        labels = (model, self._kind)
        self.recorder.observe(REQUEST_SECONDS, labels, seconds)
        if not isinstance(outcome, Finished) or (first := outcome.first_token_seconds) is None:
            return
        self.recorder.observe(FIRST_TOKEN_SECONDS, labels, first)
        later_tokens = outcome.usage.completion_tokens - 1
        if later_tokens > 0 and len(outcome.choices) == 1:
            self.recorder.observe(OUTPUT_TOKEN_SECONDS, labels, max(0.0, seconds - first) / later_tokens)

    def add_usage(
        self,
        tenant: str,
        model: str,
        *,
        requests: int,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int,
        reasoning_tokens: int,
    ) -> None:
        """Count what was added to the usage of a tenant."""
        labels = (model, self._tenant_label(tenant))
        for metric, number in (
            (USAGE_REQUESTS, requests),
            (USAGE_PROMPT, prompt_tokens),
            (USAGE_COMPLETION, completion_tokens),
            (USAGE_CACHED, cached_tokens),
            (USAGE_REASONING, reasoning_tokens),
        ):
            self.recorder.add(metric, labels, number)

    def _tenant_label(self, tenant: str) -> str:
        with self._lock:
            if tenant in self._tenants:
                return tenant
            if len(self._tenants) >= self._max_tenants:
                return OTHER
            self._tenants.add(tenant)
            return tenant
