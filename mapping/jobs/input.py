"""The input of a job: a table that is opened, or refused with the field of the request that has to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mapping.errors import MappingError
from mapping.formats.opening import format_of, open_table
from mapping.formats.table import Table
from mapping.jobs.messages import Refusal, TableFile


class Refused(Exception):
    """The input is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refused(message: str, code: str, param: str) -> Refused:
    """Return the exception for a reason, which becomes a sentence."""
    sentence = message[:1].upper() + message[1:]
    sentence += "" if sentence.endswith((".", "?")) else "."
    return Refused(Refusal(message=sentence, code=code, param=param))


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Raise a MappingError of the block as Refused: `param` is the field of the table."""
    try:
        yield
    except MappingError as error:
        if error.param is None:
            raise refused(str(error), "invalid_table", param) from None
        raise refused(str(error), "invalid_mapping", f"mapping.{error.param}") from None


def open_input(file: TableFile) -> Table:
    """Open a table by its descriptor. Raises MappingError, whose message does not repeat the file's name."""
    suffix = Path(file.name).suffix if format_of(file.name) else ""
    return open_table(Path(f"/proc/self/fd/{file.descriptor}"), name=f"table{suffix}")
