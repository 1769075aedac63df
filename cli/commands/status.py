"""`millrace status`: the server, what it serves, and what it works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from cli.batches.text import duration, eta_seconds, num_ended, percent, rate, shown_status
from cli.errors import ExitCode
from cli.models.listing import is_model
from cli.options import ApiKey, AsJson, BaseUrl, connected
from cli.output import Column, plural, print_json, print_table, printable
from core.states import FINAL_BATCH_STATES

if TYPE_CHECKING:
    from cli.client import Json

_BATCHES: Final = 100  # the newest, among which the open ones are looked for


def status(base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Show the server, its models, and the batches that have not ended.

    Exit code 0: everything works. 1: something does not. 5: there is no server.
    """
    with connected(base_url, api_key) as client:
        report = client.readiness() or {}
        models = [model for model in client.get("/models")["data"] if is_model(model)]
        recent = client.listed("/batches", limit=_BATCHES)
        url = client.base_url
    batches = [batch for batch in recent if batch["status"] not in FINAL_BATCH_STATES]
    is_ready = report.get("status") in ("ok", None)
    if as_json:
        print_json({"url": url, "is_ready": is_ready, "readiness": report, "models": models, "batches": batches})
    else:
        _print_status(url, report, models, batches)
    raise typer.Exit(ExitCode.FINE if is_ready else ExitCode.ERROR)


def _print_status(url: str, report: Json, models: list[Json], batches: list[Json]) -> None:
    problems = {name: text for name, text in report.get("checks", {}).items() if text != "ok"}
    print(f"{url}  {report.get('status', 'reachable')}")
    for name, text in problems.items():
        print(printable(f"  {name}: {text}"))
        if advice := report.get("advice", {}).get(name):
            print(printable(f"    → {advice}"))
    print(printable(f"\n{plural(len(models), 'model')}: {', '.join(model['id'] for model in models)}"))
    if not batches:
        print("There are no open batches.")
        return
    print(f"\n{plural(len(batches), 'open batch', 'open batches')}:")
    columns = ("ID", "STATUS", "DONE", Column("ETA"), Column("SPEED", is_extra=True), Column("MODEL", can_shrink=True))
    print_table(columns, [_batch_row(batch) for batch in batches])


def _batch_row(batch: Json) -> tuple[object, ...]:
    left = eta_seconds(batch)
    done = percent(batch) or f"{num_ended(batch)}/?"
    eta = "-" if left is None else duration(left)
    return batch["id"], shown_status(batch), done, eta, rate(batch) or "-", batch["model"] or "-"
