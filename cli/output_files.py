"""Output files of commands: an existing file is replaced only where the user agreed, and only by a complete one."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cli.errors import CommandFailed, ExitCode

STDOUT: Final = Path("-")
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A path that a command writes; `may_replace`: the user agreed, or nothing was there."""

    path: Path
    may_replace: bool = False

    @property
    def is_stream(self) -> bool:
        """Is it stdout, a pipe or a device? Such an output has no file beside it."""
        return self.path == STDOUT or (self.path.exists() and not self.path.is_file())

    def write(self, chunks: Iterable[bytes]) -> None:
        """Write the content; a failure leaves the old file as it was, or none."""
        with self.open() as stream:
            stream.writelines(chunks)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for writing. A file gets its name when it is complete; a link keeps pointing at its target."""
        if self.path == STDOUT:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        if self.is_stream:
            with self.path.open("wb") as stream:
                yield stream
            return
        target = self.path.resolve()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:60]}.", suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.chmod(_mode(target))
            self._move(part, target)
        finally:
            part.unlink(missing_ok=True)

    def _move(self, part: Path, target: Path) -> None:
        """Give the complete file its name. A hard link, unlike a rename, fails when another program was first."""
        if self.may_replace:
            part.replace(target)
            return
        try:
            os.link(part, target)
        except FileExistsError:
            message = f"{self.path} has appeared meanwhile, and was left as it is. Name another file with -o."
            raise CommandFailed(message) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            part.rename(target)


def choose_outputs(
    paths: Sequence[Path],
    *,
    inputs: Sequence[Path] = (),
    force: bool,
    is_own: Callable[[Path], bool] = lambda _: False,
) -> list[OutputFile]:
    """Return the outputs, after asking on a terminal whether existing files may be replaced.

    `is_own(path)`: an existing file is an earlier output of the same work. Raises CommandFailed for an output that is an input,
    for one in a folder that does not exist, and for an existing file without consent.
    """
    for path in paths:
        _check_place(path)
        if any(_is_same(path, source) for source in inputs):
            message = f"{path} is the input file, and would be overwritten. Name another file with -o."
            raise CommandFailed(message, ExitCode.USAGE)
    existing = [path for path in paths if path != STDOUT and path.is_file() and path.stat().st_size]
    foreign = [path for path in existing if not is_own(path)]
    if foreign and not force:
        _ask(foreign)
    empty = [path for path in paths if path != STDOUT and path.is_file() and path not in existing]
    return [OutputFile(path=path, may_replace=force or path in existing or path in empty) for path in paths]


def _check_place(path: Path) -> None:
    if path == STDOUT:
        return
    if path.is_dir():
        raise CommandFailed(f"{path} is a folder. Name a file in it.", ExitCode.USAGE)
    if not path.resolve().parent.is_dir():
        raise CommandFailed(f"There is no folder {path.parent} to write {path.name} to.", ExitCode.USAGE)


def _is_same(path: Path, other: Path) -> bool:
    """Are both one file: by name, or through links?"""
    if STDOUT in (path, other):
        return False
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def _ask(existing: Sequence[Path]) -> None:
    names = " and ".join(map(str, existing))
    verb, them = ("exists", "it") if len(existing) == 1 else ("exist", "them")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        message = f"{names} {verb} already. Name another file with -o, or replace {them} with --force."
        raise CommandFailed(message, ExitCode.USAGE)
    import typer

    if not typer.confirm(f"{names} {verb} already. Replace {them}?", err=True):
        raise CommandFailed("Nothing was changed.", ExitCode.USAGE)


def _mode(target: Path) -> int:
    """Return the mode of the file that is replaced, or that of a new file."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask
