"""`millrace logs`: everything that the logs of this machine have about one id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CommandFailed
from cli.options import AsJson, StateDir, given_settings
from cli.output import plural, print_json, printable, remark

if TYPE_CHECKING:
    from cli.log_search import LogLine, Wanted
    from core.settings import Settings

_BATCHES: Final = 20  # of one file
_ASKED: Final = "The database was asked for what belongs to it."
_KEPT: Final = "MILLRACE_LOG_BYTES"
_HIDDEN: Final = ("timestamp", "event", "level")


def logs(
    wanted_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="An id of a request (header x-request-id), job, batch, line, response, file or trace, or any other word.",
        ),
    ],
    log: Annotated[
        list[Path] | None, typer.Option("--log", help="A log to read in place of those of the state directory.")
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show all log lines about one id, and about the request, job and batch that it belongs to, by time."""
    from cli.log_search import log_files, search

    settings = given_settings(state_dir=state_dir)
    folder = settings.state_dir / "logs"
    files = list(log) if log else log_files(folder)
    for path in log or ():
        if not path.is_file():
            raise CommandFailed(f"There is no file {path}.")
    wanted, note = _wanted(settings, wanted_id.strip())
    num_lines = 0
    for line in search(files, wanted):
        num_lines += 1
        _print(line, as_json=as_json)
    if not num_lines:
        place = "the given logs" if log else str(folder)
        message = f"Nothing about {wanted_id} is in {plural(len(files), 'log file')} of {place}. {note or _ASKED}"
        raise CommandFailed(f"{message} Other hosts have logs of their own, and old ones are deleted ({_KEPT}).")
    if note:
        remark(f"millrace: {note}")


def _wanted(settings: Settings, wanted_id: str) -> tuple[Wanted, str]:
    """The ids to look for, by the database if it can be reached, and a sentence about it."""
    from sqlalchemy.exc import SQLAlchemyError

    from cli.log_search import Wanted
    from cli.stack.services import running_database
    from core import ids
    from core.errors import MillraceError
    from core.telemetry.origin import Origin
    from db.connections import database_engine
    from db.relations import relations_of_batch, relations_of_job

    found = {wanted_id}
    if wanted_id.startswith("resp_"):  # its job has the same suffix
        found |= {prefix + wanted_id.removeprefix("resp_") for prefix in (ids.CHAT, ids.BATCH_LINE)}
    shard = None
    try:
        url = settings.database_url or running_database(settings.state_dir)
        if url is None:
            return Wanted(ids=frozenset(found)), "No database runs here, so only the logs were asked."
        engine = database_engine(url, pool_size=1)
        with engine.connect() as connection:
            rows = [row for each in found for row in relations_of_job(each).fetch_all(connection)]
            rows += relations_of_batch(wanted_id, _BATCHES).fetch_all(connection)
        engine.dispose()
    except (SQLAlchemyError, MillraceError, OSError):
        return Wanted(ids=frozenset(found)), "The database cannot be reached, so only the logs were asked."
    for row in rows:
        shard = row.shard_id or shard
        related = (row.job_id, row.batch_id, Origin.from_json(row.origin_json).request_id)
        found |= {each for each in related if each}
    return Wanted(ids=frozenset(found), shard=shard), ""


def _print(line: LogLine, *, as_json: bool) -> None:
    fields = line.fields()
    if as_json:
        print_json({"process": line.process, **(fields or {"timestamp": line.at, "text": line.text})})
        return
    if fields is None:
        print(printable(f"{line.at or '-'}  {line.process}  {line.text}"))
        return
    details = "  ".join(f"{name}={value}" for name, value in fields.items() if name not in _HIDDEN)
    print(printable(f"{line.at}  {line.process}  {fields.get('event', '')}  {details}"))
