"""Origin of a job or batch: the request that created it, and the trace that it belongs to.

It is stored with the row, since tickets carry only ids: a shard that runs again hours later on another host has the same
origin. The trace is W3C's Trace Context, Level 1 (https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_MAX_TRACESTATE: Final = 512
_SAMPLED: Final = 1


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The id of a request, and the span that its work is a part of; each is empty where there is none."""

    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""

    @classmethod
    def of_headers(cls, request_id: str, traceparent: str | None, tracestate: str | None) -> Origin:
        """The origin of a request with these headers. Those that W3C's rules do not allow are ignored."""
        match = _TRACEPARENT.fullmatch(traceparent or "")
        if match is None or (match[1] == "00" and match[5]):
            return cls(request_id=request_id)
        state = tracestate or ""
        is_valid = len(state) <= _MAX_TRACESTATE and state.isascii() and state.isprintable()
        return cls(
            request_id=request_id,
            traceparent=f"00-{match[2]}-{match[3]}-{match[4]}",
            tracestate=state if is_valid else "",
        )

    @classmethod
    def from_json(cls, text: str | None) -> Origin:
        """Read a column; without a value the origin is empty."""
        return cls() if text is None else msgspec.json.decode(text, type=cls)

    def to_json(self) -> str:
        """The value of a column."""
        return msgspec.json.encode(self).decode()

    @property
    def trace_id(self) -> str:
        """The id of the trace in hexadecimal, or empty."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """The id of the span in hexadecimal, or empty."""
        return self.traceparent[36:52]

    @property
    def is_sampled(self) -> bool:
        """Is the trace recorded?"""
        return bool(self.traceparent) and bool(int(self.traceparent[53:], 16) & _SAMPLED)

    def with_span(self, trace_id: str, span_id: str, *, is_sampled: bool) -> Origin:
        """Return the same request with another span."""
        return msgspec.structs.replace(self, traceparent=f"00-{trace_id}-{span_id}-{int(is_sampled):02x}")

    def unsampled(self) -> Origin:
        """Return the same span, of which those that receive it shall record nothing."""
        return self.with_span(self.trace_id, self.span_id, is_sampled=False) if self.traceparent else self

    def log_fields(self) -> dict[str, str]:
        """The fields of log lines about its work."""
        fields = {"request_id": self.request_id, "trace_id": self.trace_id}
        return {name: value for name, value in fields.items() if value}
