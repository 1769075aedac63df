"""Exit codes of the commands, and the errors that carry them."""

from __future__ import annotations

from enum import IntEnum

from core.errors import MillraceError


class ExitCode(IntEnum):
    """Exit codes that scripts may rely on (docs/commands.md)."""

    FINE = 0
    ERROR = 1
    USAGE = 2
    SOME_LINES_FAILED = 3
    BATCH_DID_NOT_COMPLETE = 4
    UNREACHABLE = 5
    NOT_ALLOWED = 6
    INTERRUPTED = 130
    TERMINATED = 143

    @staticmethod
    def of(interrupt: KeyboardInterrupt) -> ExitCode:
        """Return the exit code for a signal: 128 and its number, as of a shell."""
        return ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class CommandFailed(MillraceError):
    """The command could not do what was asked."""

    def __init__(self, message: str, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.code = code


class Refused(CommandFailed):
    """The server refused a call with this HTTP status."""

    def __init__(self, message: str, status: int, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message, code)
        self.status = status


class TryAgainLater(Refused):
    """The server refused a call for now, since a limit is reached; `seconds` is the wait that it advises."""

    def __init__(self, message: str, status: int, seconds: int) -> None:
        super().__init__(message, status)
        self.seconds = seconds
