"""`millrace batch`: create batches, follow them, and fetch their results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.batches.text import PAUSED, WAITING_FOR_MODEL, age, details, error_text, num_ended, shown_status
from cli.errors import CommandFailed, ExitCode
from cli.options import ApiKey, AsJson, BaseUrl, BatchId, Force, Limit, Output, connected
from cli.output import (
    Column,
    console,
    moment,
    opened,
    plural,
    print_json,
    print_pairs,
    print_table,
    printable,
    remark,
)
from cli.output_files import STDOUT, choose_outputs
from core.field_errors import nearest
from core.states import FINAL_BATCH_STATES, BatchState

if TYPE_CHECKING:
    from cli.client import Client, Json

batches = typer.Typer(help="Batches on the server.", no_args_is_help=True)

_POLL_SECONDS: Final = 0.5
_PAGE: Final = 500
_MAX_PAGE: Final = 100
_STATUSES: Final = (*BatchState, PAUSED, WAITING_FOR_MODEL)
# shown statuses that are only a part of what the server's filter finds: a status includes its paused batches
_NARROWED: Final = {name: name for name in ("validating", "in_progress")} | {WAITING_FOR_MODEL: "in_progress"}
Watch = Annotated[bool, typer.Option("--watch", help="Wait until the batch has ended; the exit code is its outcome.")]


@batches.command()
def create(
    source: Annotated[
        str, typer.Argument(help="A batch file, - for stdin, or the id of an uploaded file.", metavar="FILE")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(help="Endpoint of the batch.", show_default="the url of the first line", metavar="PATH"),
    ] = None,
    window: Annotated[str, typer.Option(help="Time after which the batch expires: 90m, 24h, 7d.")] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="A pair that is stored with the batch; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    watch: Watch = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Start a batch and print its id."""
    pairs = _pairs(metadata or [])
    with connected(base_url, api_key) as client:
        file_id, found = _input(client, source)
        batch = client.create_batch(file_id, endpoint or found, window, pairs)
        _report_new(client, batch, watch=watch, as_json=as_json)


@batches.command("list")
def list_batches(
    limit: Limit = 20,
    status: Annotated[
        str | None, typer.Option(help="Only batches of this status, such as in_progress, paused or failed.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only batches with lines of this model.")] = None,
    search: Annotated[
        str | None,
        typer.Option(help="Only batches with this text in id, name or file name, in any case.", metavar="TEXT"),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="Only batches with this pair; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """List the newest batches. On a terminal, columns that do not fit are shortened or omitted."""
    if status is not None and status not in _STATUSES:
        message = f"There is no status {status!r}{nearest(status, _STATUSES) or '.'} Statuses: {', '.join(_STATUSES)}."
        raise CommandFailed(message, ExitCode.USAGE)
    pairs = _pairs(metadata or []) or {}
    is_filtered = bool(status or model or search or pairs)
    with connected(base_url, api_key) as client:
        pages = client.pages(
            "/batches",
            limit=_MAX_PAGE if status in _NARROWED else min(limit, _MAX_PAGE),
            status=_NARROWED.get(status, status) if status else None,
            model=model,
            q=search,
            **{f"metadata[{key}]": value for key, value in pairs.items()},
        )
        found = list(islice((batch for batch in pages if status in (None, shown_status(batch))), limit))
    if as_json:
        print_json(found)
        return
    if not found:
        remark("No batch matches." if is_filtered else "There are no batches.")
        return
    columns = (
        "ID",
        "STATUS",
        "DONE",
        "FAIL",
        "AGE",
        Column("MODEL", can_shrink=True),
        Column("CREATED", is_extra=True),
    )
    print_table(columns, [_row(batch) for batch in found])


@batches.command()
def show(batch_id: BatchId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Show a batch. With --json, prints the object of the API."""
    with connected(base_url, api_key) as client:
        batch = client.get(f"/batches/{batch_id}")
    if as_json:
        print_json(batch)
    else:
        print_pairs(details(batch))


@batches.command()
def watch(
    batch_id: BatchId,
    lines: Annotated[bool, typer.Option("--lines", help="Print each line of the batch as it ends.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Follow a batch until it has ended; the exit code is its outcome. With --json, prints one line for each change."""
    with connected(base_url, api_key) as client:
        batch = client.get(f"/batches/{batch_id}")
        if lines:
            _follow_lines(client, batch_id, as_json=as_json)
        batch = _follow(client, batch, as_json=as_json)
    raise typer.Exit(_outcome(batch))


@batches.command()
def cancel(batch_id: BatchId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Cancel a batch. Finished lines are kept."""
    _act(batch_id, "cancel", base_url, api_key, as_json=as_json)


@batches.command()
def pause(batch_id: BatchId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Pause a batch: no more lines start. Its completion window continues."""
    _act(batch_id, "pause", base_url, api_key, as_json=as_json)


@batches.command()
def resume(batch_id: BatchId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Resume a paused batch."""
    _act(batch_id, "resume", base_url, api_key, as_json=as_json)


@batches.command(context_settings={"ignore_unknown_options": True})  # -5 is a number
def priority(
    batch_id: BatchId,
    number: Annotated[
        int, typer.Argument(min=-100, max=100, help="From -100 to 100; 0 is the default.", metavar="NUMBER")
    ],
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Set the priority of a batch. Lines of a higher priority start first."""
    with connected(base_url, api_key) as client:
        batch = client.patch(f"/batches/{batch_id}", {"priority": number})
    if as_json:
        print_json(batch)
    else:
        print(f"{batch['id']} has priority {batch['priority']}.")


@batches.command()
def retry(
    batch_id: BatchId,
    custom_ids: Annotated[
        list[str] | None, typer.Argument(help="Retry only these lines.", metavar="[CUSTOM_ID]...")
    ] = None,
    watch: Watch = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Run the lines of an ended batch that have no answer again, as a new batch, and print its id."""
    with connected(base_url, api_key) as client:
        batch = client.post(f"/batches/{batch_id}/retry", {"custom_ids": custom_ids} if custom_ids else {})
        _report_new(client, batch, watch=watch, as_json=as_json)


@batches.command()
def download(
    batch_id: BatchId,
    output: Output = STDOUT,
    partial: Annotated[
        bool, typer.Option("--partial", help="Save the lines that have ended so far, failed ones too.")
    ] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Include the results of its retries.")] = False,
    force: Force = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Save the answers of a batch. Failed lines go to a file beside them: NAME.errors.jsonl for NAME.jsonl."""
    from cli.batches import results

    if output == STDOUT and as_json:
        raise CommandFailed("With --json, name a file for the answers: -o FILE.", ExitCode.USAGE)
    with connected(base_url, api_key) as client:
        batch = client.get(f"/batches/{batch_id}")
        has_ended = batch["status"] in FINAL_BATCH_STATES
        if partial or merged:
            (target,) = choose_outputs([output], force=force)
            target.write(client.finished_lines(batch_id, is_merged=merged))
        elif not has_ended:
            message = (
                f"The batch is {shown_status(batch)}. Wait with: millrace batch watch {batch_id}; or add --partial."
            )
            raise CommandFailed(message)
        else:
            files = results.choose_results(output, force=force)
            results.save(client, batch, files)
    if as_json:
        print_json({"batch": batch, "output": str(output)})
    elif not (partial or merged):
        results.print_results(console(as_json=True), batch, files)
    elif output != STDOUT:
        remark(f"results so far: {output}")
    raise typer.Exit(_outcome(batch) if has_ended else ExitCode.FINE)


@batches.command()
def errors(batch_id: BatchId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """List the errors of a batch file, or of its lines. With --json, prints one line for each."""
    is_empty = True
    with connected(base_url, api_key) as client:
        for error in _errors(client, client.get(f"/batches/{batch_id}")):
            is_empty = False
            if as_json:
                print_json(error)
            else:
                custom_id = f"{error['custom_id']}: " if error.get("custom_id") else ""
                print(printable(f"{custom_id}{error_text({**error, 'line': None} if custom_id else error)}"))
    if is_empty:
        remark("There are no errors.")


def _input(client: Client, source: str) -> tuple[str, str]:
    """Return the id of the file, and the endpoint that its first line names."""
    from cli.batches.run import first_endpoint

    if source.startswith("file-") and not Path(source).exists():
        return source, "/v1/chat/completions"
    with opened(Path(source)) as content:
        return client.send_file(content.name, content.stream, "batch")["id"], first_endpoint(content.path)


def _pairs(given: list[str]) -> dict[str, str] | None:
    if any("=" not in pair for pair in given):
        raise CommandFailed("Write metadata as KEY=VALUE.", ExitCode.USAGE)
    return {name: value for name, _, value in (pair.partition("=") for pair in given)} or None


def _report_new(client: Client, batch: Json, *, watch: bool, as_json: bool) -> None:
    """Print the id of a new batch, or follow it."""
    if not watch:
        print_json(batch) if as_json else print(batch["id"])
        return
    remark(batch["id"])
    raise typer.Exit(_outcome(_follow(client, batch, as_json=as_json)))


def _act(batch_id: str, verb: str, base_url: str | None, api_key: str, *, as_json: bool) -> None:
    with connected(base_url, api_key) as client:
        batch = client.post(f"/batches/{batch_id}/{verb}")
    if as_json:
        print_json(batch)
    else:
        print(f"{batch['id']} is {shown_status(batch)}.")


def _follow(client: Client, batch: Json, *, as_json: bool) -> Json:
    """Follow a batch until it has ended; Ctrl-C leaves the batch running."""
    try:
        if as_json:
            return _print_changes(client, batch)
        from cli.batches.progress import wait

        return wait(client, console(), batch, batch.get("input_file_name") or batch["id"], lambda: None)
    except KeyboardInterrupt as interrupt:
        message = f"Stopped watching; the batch continues. Watch it again with: millrace batch watch {batch['id']}"
        raise CommandFailed(message, ExitCode.of(interrupt)) from None


def _print_changes(client: Client, batch: Json) -> Json:
    print_json(batch)
    while batch["status"] not in FINAL_BATCH_STATES:
        time.sleep(_POLL_SECONDS)
        now = client.batch(batch["id"])
        if now != batch:
            print_json(now)
        batch = now
    return batch


def _follow_lines(client: Client, batch_id: str, *, as_json: bool) -> None:
    try:
        for name, data in client.events(f"/batches/{batch_id}/events?lines=all"):
            if as_json:
                print_json({"event": name, **data})
            elif name == "batch.line":
                print(
                    printable(f"line {data['line']} {data['custom_id']}: {data['code'] or data['status']}"), flush=True
                )
    except KeyboardInterrupt as interrupt:
        message = f"Stopped watching; the batch continues. Watch it again with: millrace batch watch --lines {batch_id}"
        raise CommandFailed(message, ExitCode.of(interrupt)) from None


def _outcome(batch: Json) -> ExitCode:
    from cli.batches.results import outcome

    code, failed = outcome(batch), batch["request_counts"]["failed"]
    if code is ExitCode.BATCH_DID_NOT_COMPLETE:
        remark(f"The batch is {batch['status']}.")
    elif failed:
        remark(f"{plural(failed, 'line')} failed; see them with: millrace batch errors {batch['id']}")
    return code


def _errors(client: Client, batch: Json) -> Iterator[Json]:
    """Yield errors of the file, then of lines: from the error file, or from the lines while there is none."""
    yield from (batch["errors"] or {}).get("data", [])
    if batch["error_file_id"]:
        for line in client.content_lines(batch["error_file_id"]):
            result = json.loads(line)
            error = result["error"] or result["response"]["body"]["error"]
            yield {"custom_id": result["custom_id"], **error}
    elif batch["status"] not in FINAL_BATCH_STATES:
        for request in client.pages(f"/batches/{batch['id']}/requests", status="failed", limit=_PAGE):
            yield {"custom_id": request["custom_id"], "line": request["line"], **(request["error"] or {})}


def _row(batch: Json) -> tuple[object, ...]:
    counts = batch["request_counts"]
    return (
        batch["id"],
        shown_status(batch),
        f"{num_ended(batch)}/{counts['total']}",
        counts["failed"],
        age(batch["created_at"]),
        batch["model"] or "-",
        moment(batch["created_at"]),
    )
