"""Install everything into this environment: `python -m tools.install [--gpu KIND]`. The Makefile runs it.

The other packages are installed while llama.cpp is compiled. A stamp file is touched when something was installed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tools.install.children import Children, Failed
from tools.install.llama import PACKAGE, PINNED, PIP, ROOT, install, installed_kind, is_installed, prove, wheel
from tools.install.toolkits import Toolkit, choose

_STAMP: Final = Path(sys.prefix) / "installed"
_SOURCES: Final = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
_IMPORTS: Final = (
    "import api.__main__, cli.main, engine.process.server, kombu.transport.redis",
    "import workers.consumers.main, workers.launcher.launcher",
)


def main() -> None:
    """Install what is missing, and prove it."""
    parser = argparse.ArgumentParser(prog="python -m tools.install", description=__doc__)
    parser.add_argument("--gpu", default="", help="cuda, hip, vulkan, cpu or auto; default: as installed, else cpu")
    asked = parser.parse_args().gpu
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        toolkit = choose(asked, installed_kind())
        if not (is_installed(toolkit) and _is_current()):
            _install(toolkit)
            prove(toolkit)
            _STAMP.touch()
    except Failed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _install(toolkit: Toolkit | None) -> None:
    with ThreadPoolExecutor(1) as pool, Children() as children:
        packages = pool.submit(_install_packages, children)
        packages.add_done_callback(lambda done: children.stop() if done.exception() else None)
        try:
            path = None if is_installed(toolkit) else wheel(toolkit, children)
        except Failed:
            _raise_failure_of(packages)
            raise
        packages.result()
        if path:
            _STAMP.unlink(missing_ok=True)
            install(path, children)


def _install_packages(children: Children) -> None:
    """Install the other packages and this one, and import what the processes import."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    others = [requirement for requirement in wanted if not requirement.startswith(PACKAGE)]
    problem = "The other packages were not installed"
    children.need((*PIP, "install", "--quiet", *PINNED, *others), problem)
    children.need((*PIP, "install", "--quiet", "--no-deps", *PINNED, "--editable", str(ROOT)), problem)
    children.need((sys.executable, "-P", "-c", "\n".join(_IMPORTS)), "The installation is not complete")


def _raise_failure_of(packages: Future[None]) -> None:
    """Raise the failure that has stopped the compilation, if there is one."""
    if packages.done():
        packages.result()


def _is_current() -> bool:
    return _STAMP.exists() and all(_STAMP.stat().st_mtime >= source.stat().st_mtime for source in _SOURCES)


if __name__ == "__main__":
    main()
