"""`millrace batch`: create batches, follow them, and fetch their results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL, ApiKey, AsJson, BaseUrl, BatchId, Limit, connected
from cli.output import console, moment, opened, print_fields, print_json, print_table, printable, remark
from core.states import FINAL_BATCH_STATES

if TYPE_CHECKING:
    from cli.client import Client, Json

batches = typer.Typer(help="Batches on the server.", no_args_is_help=True)

_POLL_SECONDS: Final = 0.5
_PAGE: Final = 500
Watch = Annotated[bool, typer.Option("--watch", help="Wait until it has ended; the exit code is its outcome.")]


@batches.command()
def create(
    source: Annotated[str, typer.Argument(help="A batch file, - for stdin, or the id of an uploaded file.")],
    endpoint: Annotated[str | None, typer.Option(help="Default: the url of the first line.")] = None,
    window: Annotated[str, typer.Option(help="It expires after this long: 90m, 24h, 7d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    watch: Watch = False,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Start a batch; prints its id."""
    pairs = _pairs(metadata or [])
    with connected(base_url, api_key) as client:
        file_id, found = _input(client, source)
        batch = client.create_batch(file_id, endpoint or found, window, pairs)
        _report_new(client, batch, watch=watch, as_json=as_json)


@batches.command("list")
def list_batches(
    limit: Limit = 20, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """List the newest batches."""
    with connected(base_url, api_key) as client:
        found = client.listed("/batches", limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(("ID", "STATUS", "DONE", "FAILED", "TOTAL", "MODEL", "CREATED"), [_row(batch) for batch in found])


@batches.command()
def show(batch_id: BatchId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Show one batch."""
    with connected(base_url, api_key) as client:
        _print(client.get(f"/batches/{batch_id}"), as_json=as_json)


@batches.command()
def watch(
    batch_id: BatchId,
    lines: Annotated[bool, typer.Option("--lines", help="Print each line as it ends.")] = False,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Follow a batch until it has ended; the exit code is its outcome. With --json, prints a line for each change."""
    with connected(base_url, api_key) as client:
        batch = client.get(f"/batches/{batch_id}")
        if lines:
            _follow_lines(client, batch_id, as_json=as_json)
        batch = _follow(client, batch, as_json=as_json)
    raise typer.Exit(_outcome(batch))


@batches.command()
def cancel(
    batch_id: BatchId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Stop a batch; finished lines are kept."""
    _act(batch_id, "cancel", base_url, api_key, as_json=as_json)


@batches.command()
def pause(
    batch_id: BatchId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Start no more lines for now; the completion window continues."""
    _act(batch_id, "pause", base_url, api_key, as_json=as_json)


@batches.command()
def resume(
    batch_id: BatchId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """Resume a paused batch."""
    _act(batch_id, "resume", base_url, api_key, as_json=as_json)


@batches.command()
def retry(
    batch_id: BatchId,
    custom_ids: Annotated[list[str] | None, typer.Argument(help="Only these lines.", metavar="[CUSTOM_ID]...")] = None,
    watch: Watch = False,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Run the lines of an ended batch that have no answer again, as a new batch; prints its id."""
    with connected(base_url, api_key) as client:
        batch = client.post(f"/batches/{batch_id}/retry", {"custom_ids": custom_ids} if custom_ids else {})
        _report_new(client, batch, watch=watch, as_json=as_json)


@batches.command()
def download(
    batch_id: BatchId,
    output: Annotated[Path, typer.Option("-o", "--output", help="File for the answers; - is stdout.")] = Path("-"),
    partial: Annotated[
        bool, typer.Option("--partial", help="Fetch the lines that have ended so far, failed ones too.")
    ] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Include the answers of its retries.")] = False,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Fetch the answers; in a file, failed lines are saved beside them."""
    is_stdout = str(output) == "-"
    if is_stdout and as_json:
        raise CommandFailed("With --json, name a file for the answers: -o FILE.", ExitCode.USAGE)
    with connected(base_url, api_key) as client:
        batch = client.get(f"/batches/{batch_id}")
        if partial or merged:
            _write(client.finished_lines(batch_id, is_merged=merged), output)
        elif batch["status"] not in FINAL_BATCH_STATES:
            raise CommandFailed(
                f"The batch is {batch['status']}. Wait with: millrace batch watch {batch_id}; or --partial"
            )
        elif is_stdout:
            _write(client.content(batch["output_file_id"]) if batch["output_file_id"] else iter(()), output)
        else:
            from cli.commands.batch_run import save

            save(client, batch, output)
    if as_json:
        print_json({"batch": batch, "output": str(output)})
    elif not is_stdout:
        remark(f"answers: {output}")
    raise typer.Exit(_outcome(batch) if batch["status"] in FINAL_BATCH_STATES else ExitCode.FINE)


@batches.command()
def errors(
    batch_id: BatchId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False
) -> None:
    """List errors of the file, or of its lines. With --json, one line for each."""
    with connected(base_url, api_key) as client:
        for error in _errors(client, client.get(f"/batches/{batch_id}")):
            if as_json:
                print_json(error)
            else:
                where = error.get("custom_id") or (f"line {error['line']}" if error.get("line") else "file")
                print(printable(f"{where}: {error['message']} ({error['code']})"))


def _input(client: Client, source: str) -> tuple[str, str]:
    """Return the id of the file, and the endpoint that its first line names."""
    from cli.commands.batch_run import first_endpoint

    if source.startswith("file-") and not Path(source).exists():
        return source, "/v1/chat/completions"
    with opened(Path(source)) as content:
        return client.send_file(content.name, content.stream, "batch")["id"], first_endpoint(content.path)


def _pairs(given: list[str]) -> dict[str, str] | None:
    if any("=" not in pair for pair in given):
        raise CommandFailed("Metadata is given as KEY=VALUE.", ExitCode.USAGE)
    return {name: value for name, _, value in (pair.partition("=") for pair in given)} or None


def _report_new(client: Client, batch: Json, *, watch: bool, as_json: bool) -> None:
    """Print the id of a new batch, or follow it."""
    if not watch:
        print_json(batch) if as_json else print(batch["id"])
        return
    remark(batch["id"])
    raise typer.Exit(_outcome(_follow(client, batch, as_json=as_json)))


def _act(batch_id: str, verb: str, base_url: str, api_key: str, *, as_json: bool) -> None:
    with connected(base_url, api_key) as client:
        batch = client.post(f"/batches/{batch_id}/{verb}")
    if as_json:
        print_json(batch)
    else:
        is_paused = batch.get("paused_at") is not None
        print(f"{batch['id']} is {'paused' if is_paused else batch['status']}.")


def _follow(client: Client, batch: Json, *, as_json: bool) -> Json:
    """Follow a batch until it has ended; Ctrl-C leaves the batch running."""
    try:
        if as_json:
            return _print_changes(client, batch)
        from cli.commands.batch_run import wait

        return wait(client, console(), batch, lambda: None)
    except KeyboardInterrupt:
        message = f"Stopped watching; the batch continues. Watch it again with: millrace batch watch {batch['id']}"
        raise CommandFailed(message, ExitCode.INTERRUPTED) from None


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
    except KeyboardInterrupt:
        message = f"Stopped watching; the batch continues. Watch it again with: millrace batch watch --lines {batch_id}"
        raise CommandFailed(message, ExitCode.INTERRUPTED) from None


def _outcome(batch: Json) -> ExitCode:
    if batch["status"] != "completed":
        remark(f"The batch is {batch['status']}.")
        return ExitCode.BATCH_DID_NOT_COMPLETE
    failed = batch["request_counts"]["failed"]
    if failed:
        remark(f"{failed} lines failed; see them with: millrace batch errors {batch['id']}")
    return ExitCode.SOME_LINES_FAILED if failed else ExitCode.FINE


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


def _write(chunks: Iterator[bytes], output: Path) -> None:
    if str(output) == "-":
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    with output.open("wb") as stream:
        stream.writelines(chunks)


def _row(batch: Json) -> tuple[object, ...]:
    counts = batch["request_counts"]
    return (
        batch["id"],
        batch["status"],
        counts["completed"],
        counts["failed"],
        counts["total"],
        batch["model"] or "-",
        moment(batch["created_at"]),
    )


def _print(batch: Json, *, as_json: bool) -> None:
    (print_json if as_json else print_fields)(batch)
