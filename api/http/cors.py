"""Cross-origin requests: the pages whose scripts may call this server from a browser."""

from __future__ import annotations

from typing import Any, Final

from core.settings import split_commas

_LEVELS: Final = tuple(
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
)
_EXPOSED: Final = (
    "x-request-id", "openai-processing-ms", "retry-after", "x-should-retry", "content-disposition", "content-range", "etag",
    "x-millrace-after", "x-millrace-fallback", *_LEVELS,
)  # fmt: skip
_MAX_AGE_SECONDS: Final = 600


def origins_of(setting: str) -> frozenset[str]:
    """The origins of the setting `cors_origins`, as browsers spell them."""
    return frozenset(part.removesuffix("/").lower() for part in split_commas(setting))


def cors_options(setting: str) -> dict[str, Any]:  # Any: options of starlette's middleware
    """The options of the middleware. Keys are sent in a header, so no cookies are allowed."""
    return {
        "allow_origins": sorted(origins_of(setting)),
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "allow_private_network": True,
        "expose_headers": _EXPOSED,
        "max_age": _MAX_AGE_SECONDS,
    }
