"""`millrace files`: files on the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL, ApiKey, AsJson, BaseUrl, FileId, Limit, connected
from cli.output import moment, opened, print_fields, print_json, print_table, remark

files = typer.Typer(help="Files on the server.", no_args_is_help=True)


@files.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose, such as batch.")] = None,
    limit: Limit = 20,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """List the newest files."""
    with connected(base_url, api_key) as client:
        found = client.listed("/files", limit=limit, purpose=purpose)
    if as_json:
        print_json(found)
    else:
        rows = [(f["id"], f["purpose"], f["bytes"], moment(f["created_at"]), f["filename"]) for f in found]
        print_table(("ID", "PURPOSE", "BYTES", "CREATED", "NAME"), rows)


@files.command()
def show(file_id: FileId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Show one file."""
    with connected(base_url, api_key) as client:
        found = client.get(f"/files/{file_id}")
    (print_json if as_json else print_fields)(found)


@files.command()
def upload(
    source: Annotated[Path, typer.Argument(help="A file; - is stdin.", metavar="FILE")],
    purpose: Annotated[str, typer.Option(help="Purpose of the file.")] = "batch",
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Send a file; prints its id."""
    with opened(source) as content, connected(base_url, api_key) as client:
        made = client.send_file(content.name, content.stream, purpose)
    if as_json:
        print_json(made)
    else:
        print(made["id"])


@files.command()
def download(
    file_id: FileId,
    output: Annotated[Path, typer.Option("-o", "--output", help="File for the content; - is stdout.")] = Path("-"),
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Fetch a file's content."""
    is_stdout = str(output) == "-"
    if is_stdout and as_json:
        raise CommandFailed("With --json, name a file for the content: -o FILE.", ExitCode.USAGE)
    with connected(base_url, api_key) as client:
        if is_stdout:
            for chunk in client.content(file_id):
                sys.stdout.buffer.write(chunk)
            return
        client.download(file_id, output)
    if as_json:
        print_json({"id": file_id, "path": str(output), "bytes": output.stat().st_size})
    else:
        remark(f"{output}: {output.stat().st_size} bytes")


@files.command()
def delete(file_id: FileId, base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Delete a file; a batch that reads it continues."""
    with connected(base_url, api_key) as client:
        gone = client.delete(f"/files/{file_id}")
    if as_json:
        print_json(gone)
    else:
        print(f"{file_id} is deleted.")
