"""The YAML and GGUF files of the models folder, with what changes when their content does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Final, NamedTuple

from core.errors import ConfigError
from core.field_errors import plain

_YAML: Final = (".yaml", ".yml")
_WEIGHTS: Final = ".gguf"
_CLOCK_STEP_SECONDS: Final = 2.0  # the coarsest clock of a file system, FAT's


class FolderFile(NamedTuple):
    """A file as last seen; two are equal when the content is the same, once it `is_settled`.

    One that cannot be looked at has a `problem`; it `is_gone` if it is a link to nothing.
    """

    name: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    problem: str = ""
    is_gone: bool = False

    @property
    def is_yaml(self) -> bool:
        """Is it a YAML file, not a GGUF file?"""
        return is_yaml(self.name)

    @property
    def is_settled(self) -> bool:
        """Would a write of now change its time?"""
        return abs(time.time() - self.mtime_ns / 1e9) > _CLOCK_STEP_SECONDS


def is_yaml(name: str) -> bool:
    """Is this the name of a YAML file?"""
    return name.lower().endswith(_YAML)


def list_files(folder: Path) -> list[FolderFile]:
    """List the files, by name, without hidden ones, folders and sockets. Raises ConfigError when there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(
            f"There is no models folder {folder}. Create it, or name another with --models-dir or MILLRACE_MODELS_DIR."
        )
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"The models folder {folder} cannot be read: {error.strerror}.") from None
    wanted = (name for name in names if not name.startswith(".") and name.lower().endswith((*_YAML, _WEIGHTS)))
    return [file for name in wanted for file in _look(folder / name)]


def _look(path: Path) -> Iterator[FolderFile]:
    """Yield a file, or nothing where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            problem = f"{plain(path.name)} is a link to a file that does not exist."
            yield FolderFile(path.name, problem=problem, is_gone=True)
    except OSError as error:
        problem = f"{plain(path.name)} cannot be read: {(error.strerror or str(error)).lower()}."
        yield FolderFile(path.name, problem=problem)
    else:
        if S_ISREG(status.st_mode):
            yield FolderFile(path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
