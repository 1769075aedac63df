"""Models as tables and objects: those of a server, or of the models folder where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cli.output import Column, print_table
from core.memory_sizes import format_bytes

if TYPE_CHECKING:
    from cli.client import Json
    from core.models.model_files import ModelConfig
    from core.settings import Settings

_V1: Final = "/v1/"
_FILE: Final = "file "  # begins the checks of files in the report of a server


def is_model(listed: Json) -> bool:
    """True for a model, False for one of its aliases."""
    return bool(listed.get("root", listed["id"]) == listed["id"])


def local_model(model: ModelConfig, settings: Settings) -> Json:
    """Return a model of the folder as a server would list it; its status is null."""
    from core.schemas.endpoints import served_endpoints

    return {
        "id": model.name,
        "object": "model",
        "root": model.name,
        "aliases": list(model.aliases),
        "backend": str(model.backend),
        "context_size": model.known_context,
        "slots": model.planned_slots(settings.slots),
        "endpoints": list(served_endpoints(model)),
        "device": None,
        "devices": [],
        "memory_bytes": None,
        "status": None,
    }


def file_problems(report: Json) -> list[str]:
    """Return what a server's report says on files of its models folder."""
    return [text for name, text in report.get("checks", {}).items() if name.startswith(_FILE)]


def print_models(models: list[Json], report: Json) -> None:
    """Print a table. `report`: the server's report on itself."""
    columns = (
        "NAME",
        "STATUS",
        Column("BACKEND", is_extra=True),
        Column("DEVICE", is_extra=True),
        Column("MEMORY", is_extra=True),
        "CONTEXT",
        "SLOTS",
        Column("ENDPOINTS", can_shrink=True),
        Column("ALIASES", is_extra=True),
    )
    print_table(columns, [_row(model, report) for model in models])


def _row(model: Json, report: Json) -> tuple[object, ...]:
    endpoints = [name.removeprefix(_V1).removesuffix("/completions") for name in model.get("endpoints", [])]
    memory = model.get("memory_bytes")
    return (
        model["id"],
        _status(model, report),
        model.get("backend") or "-",
        ", ".join(model.get("devices", [])) or "-",
        "-" if memory is None else format_bytes(memory),
        model.get("context_size") or "-",
        model.get("slots") or "auto",
        ", ".join(endpoints) or "-",
        ", ".join(model.get("aliases", [])) or "-",
    )


def _status(model: Json, report: Json) -> str:
    """Return the status of a model: its own, or that of the readiness report."""
    given: Any = model.get("status")  # Any: JSON
    if isinstance(given, dict):
        given = given.get("value")
    if given:
        return str(given)
    check = report.get("checks", {}).get(f"model {model['id']}")
    return "-" if check is None else "ready" if check == "ok" else "not ready"
