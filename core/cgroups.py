"""Folders of the cgroups that this process is in, and of all above them, with cgroups v1 and v2.

Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cgroup_folders(controller: str, sys: Path, proc: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders that may limit this process by a controller such as `cpu` or `memory`, and the names of the groups.

    `proc` is the folder of the process below /proc. A folder need not exist.
    """
    mount = sys / "fs/cgroup"
    for line in read_text(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        below = Path(path.lstrip("/"))
        for root in roots:
            for group in (below, *below.parents):  # a container may see only the root of its own path
                yield root / group, str(group)


def read_text(path: Path) -> str:
    """The text of a small file without white space around it; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
