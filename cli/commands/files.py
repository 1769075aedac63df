"""`millrace files`: files on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import ApiKey, AsJson, BaseUrl, FileId, Force, Limit, Output, connected
from cli.output import Column, moment, opened, plural, print_fields, print_json, print_table, remark
from cli.output_files import STDOUT, choose_outputs

files = typer.Typer(help="Files on the server.", no_args_is_help=True)


@files.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose, such as batch.")] = None,
    limit: Limit = 20,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """List the newest files."""
    with connected(base_url, api_key) as client:
        found = client.listed("/files", limit=limit, purpose=purpose)
    if as_json:
        print_json(found)
    else:
        columns = ("ID", "PURPOSE", "BYTES", Column("NAME", can_shrink=True), Column("CREATED", is_extra=True))
        rows = [(f["id"], f["purpose"], f["bytes"], f["filename"], moment(f["created_at"])) for f in found]
        print_table(columns, rows)


@files.command()
def show(file_id: FileId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Show a file."""
    with connected(base_url, api_key) as client:
        found = client.get(f"/files/{file_id}")
    (print_json if as_json else print_fields)(found)


@files.command()
def upload(
    source: Annotated[Path, typer.Argument(help="A file; - is stdin.", metavar="FILE")],
    purpose: Annotated[str, typer.Option(help="Purpose of the file.")] = "batch",
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Upload a file and print its id."""
    with opened(source) as content, connected(base_url, api_key) as client:
        made = client.send_file(content.name, content.stream, purpose)
    if as_json:
        print_json(made)
    else:
        print(made["id"])


@files.command()
def download(
    file_id: FileId,
    output: Output = STDOUT,
    force: Force = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Download the content of a file."""
    is_stdout = output == STDOUT
    if is_stdout and as_json:
        raise CommandFailed("With --json, name a file for the content: -o FILE.", ExitCode.USAGE)
    (target,) = choose_outputs([output], force=force)
    with connected(base_url, api_key) as client:
        target.write(client.content(file_id))
    if as_json:
        print_json({"id": file_id, "path": str(output), "bytes": output.stat().st_size})
    elif not is_stdout:
        remark(f"{plural(output.stat().st_size, 'byte')}: {output}")


@files.command()
def delete(file_id: FileId, base_url: BaseUrl = None, api_key: ApiKey = "none", as_json: AsJson = False) -> None:
    """Delete a file. A batch that uses it continues."""
    with connected(base_url, api_key) as client:
        gone = client.delete(f"/files/{file_id}")
    if as_json:
        print_json(gone)
    else:
        print(f"{file_id} is deleted.")
