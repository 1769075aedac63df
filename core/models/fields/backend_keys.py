"""Keys of a model file of the backend openai that depend on each other: defaults, and errors where they do not agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

UNKNOWN_CONTEXT: Final = 1 << 20  # the largest `context_size`: the limit of the server holds

_NOT_BESIDE_URL: Final = {
    "devices": "base_url names a server that has its own devices; remove this key",
    "memory_bytes": "base_url names a server that has its own memory; remove this key",
}


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:  # Any: YAML
    """Return the keys of a model file of the backend openai with its defaults, which differ from those of other backends."""
    endpoints = values.get("endpoints")
    is_on_devices = values.get("command") and values.get("devices")
    defaults = {
        "context_size": UNKNOWN_CONTEXT,
        "replicas": "all" if is_on_devices else 1,  # one launcher finds the concurrency of a server
        "embeddings": isinstance(endpoints, list | tuple | str) and "embeddings" in endpoints,
    }
    return {**defaults, **values}


def check_upstream(values: Mapping[str, Any]) -> None:  # Any: as `ModelConfig` has them
    """Raise ValueError for keys of the backend openai that do not agree; it begins with the key."""
    if not values["base_url"] and not values["command"]:
        raise ValueError("base_url: is missing. Write the address of the server, or a command that starts one")
    if values["embeddings"] != ("embeddings" in values["endpoints"]):
        raise ValueError("embeddings: is decided by `endpoints`, such as `endpoints: [embeddings]`; remove this key")
    if values["model"] and values["parameters.model"] not in ("", values["model"]):
        raise ValueError("model: parameters.model has another name; remove one of the two keys")
    if values["port"] is not None and values["replicas"] != 1:
        raise ValueError("port: servers of several replicas cannot share it; remove it, and write {port} in command")
    if values["base_url"]:
        _check_address(values)


def _check_address(values: Mapping[str, Any]) -> None:
    for key, advice in _NOT_BESIDE_URL.items():
        if values[key]:
            raise ValueError(f"{key}: {advice}")
    if values["replicas"] != 1:
        raise ValueError("replicas: base_url names a server that all devices share; list several servers in base_url")
