"""Build llama.cpp from the sources of llama-cpp-python, install it, and prove it: `python -m tools.install.llama [--gpu KIND]`.

Less is built than that package builds by itself: nothing here loads its `common` and vision libraries, which are half of the
work. Wheels are kept in a folder of their own: pip's cache does not distinguish builds with different options.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tools.install.children import Children, Failed, errors_in
from tools.install.progress import Progress
from tools.install.toolkits import CPU, TOOLKITS, Toolkit, choose

ROOT: Final = Path(__file__).resolve().parents[2]
PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
PINNED: Final = ("--constraint", f"{ROOT}/constraints.txt", "--build-constraint", f"{ROOT}/constraints.txt")
PACKAGE: Final = "llama-cpp-python"

_LOG: Final = Path(sys.prefix) / "llama.log"
_STEP: Final = re.compile(r"\s*\[(\d+)/(\d+)\] ")
_NO_VISION: Final = "-DLLAVA_BUILD=OFF"
# CMake reads this at the start of llama.cpp; llama-cpp-python switches `common` on after it has read the command line.
_NO_COMMON: Final = "set(LLAMA_BUILD_COMMON OFF)\n"
_VARIABLES: Final = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAARCHS", "CUDAFLAGS", "HIPFLAGS")
_NOT_FOR_THE_BUILD: Final = {"MAKEFLAGS", "MFLAGS", "PIP_QUIET"}
_PROOF: Final = """
import pathlib, llama_cpp
from llama_cpp._ggml import libggml
folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
if next(folder.glob("libggml-cpu-*"), None): # backends are libraries that are loaded on demand
    libggml.ggml_backend_load_all_from_path(str(folder).encode())
print("offload", bool(llama_cpp.llama_supports_gpu_offload()))
"""


def main() -> None:
    """Install llama.cpp alone, as an image does."""
    parser = argparse.ArgumentParser(prog="python -m tools.install.llama", description=__doc__)
    parser.add_argument("--gpu", default="", help="cuda, hip, vulkan, cpu or auto; default: as installed, else cpu")
    parser.add_argument("--no-card", action="store_true", help="build for a GPU that this machine does not have")
    given = parser.parse_args()
    try:
        with Children() as children:
            toolkit = choose(given.gpu, installed_kind())
            if not is_installed(toolkit):
                install(wheel(toolkit, children), children)
            prove(toolkit, has_card=not given.no_card)
    except Failed as failure:
        sys.exit(str(failure))


def installed_kind() -> str | None:
    """The kind of GPU that the installed llama.cpp was built for, or `cpu`; None where none is installed."""
    importlib.invalidate_caches()
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    libraries = {path.name.split(".")[0] for path in (Path(spec.origin).parent / "lib").glob("libggml-*")}
    return next((kind for kind in TOOLKITS if f"libggml-{kind}" in libraries), CPU)


def is_installed(toolkit: Toolkit | None) -> bool:
    """Is the pinned version installed, built for this kind of GPU?"""
    return _installed_version() == _pinned() and installed_kind() == (toolkit.kind if toolkit else CPU)


def wheel(toolkit: Toolkit | None, children: Children) -> Path:
    """A wheel for this machine and kind of GPU: one that was kept, or a new one. Raises Failed."""
    kept = _kept_folder(toolkit)
    if found := next(kept.glob("*.whl"), None):
        print(f"llama.cpp was compiled before: {kept}", flush=True)
        return found
    target = (
        f"{toolkit.name}: once, up to an hour" if toolkit else "this processor: once, about two minutes on two cores"
    )
    print(f"Compiling llama.cpp for {target}.", flush=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        hook = Path(folder) / "hook.cmake"
        hook.write_text(_NO_COMMON + (toolkit.cmake if toolkit else ""))
        built = Path(folder) / "wheel"
        _compile(built, _environment(toolkit, hook), children)
        built.rename(kept)
    return next(kept.glob("*.whl"))


def install(path: Path, children: Children) -> None:
    """Install a wheel, in place of one of the same version or with the packages that it needs. Raises Failed."""
    flags = ("--no-deps", "--force-reinstall") if _installed_version() == _pinned() else ()
    children.need((*PIP, "install", "--quiet", *flags, *PINNED, str(path)), "llama.cpp was not installed")


def prove(toolkit: Toolkit | None, *, has_card: bool = True) -> None:
    """Raise Failed unless the installed llama.cpp can be loaded and, if built for GPUs, finds one."""
    if toolkit and installed_kind() != toolkit.kind:
        raise Failed(f"llama.cpp was built without {toolkit.name}, though it was asked for. The whole output: {_LOG}")
    if toolkit and not has_card:
        return  # its library may need the driver, which is not here
    done = subprocess.run([sys.executable, "-P", "-c", _PROOF], capture_output=True, text=True, check=False)
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    anew = f"To compile it again, delete {_kept_folder(toolkit)} first."
    if toolkit is None:
        if done.returncode:
            raise Failed(f"llama.cpp cannot be loaded: {reason}. {anew}")
        return
    advice = f"Check the driver with {toolkit.check}, or build for the CPU: make install GPU=cpu. {anew}"
    if done.returncode:
        raise Failed(f"llama.cpp is built for {toolkit.name}, but cannot be loaded: {reason}. {advice}")
    if "offload True" not in done.stdout:
        raise Failed(
            f"llama.cpp is built for {toolkit.name}, but finds no GPU: llama_supports_gpu_offload() is false. {advice}"
        )
    print(f"llama.cpp is built for {toolkit.name}, and finds a GPU.", flush=True)


def _compile(folder: Path, environment: dict[str, str], children: Children) -> None:
    """Make the wheel in `folder`, with a live line of progress and the whole output in a log."""
    progress, lines = Progress("llama.cpp", sys.stdout), list[str]()

    def follow(line: str) -> None:
        lines.append(line)
        log.write(line + "\n")
        if step := _STEP.match(line):
            progress.show(int(step[1]), int(step[2]))
        elif "Downloading" in line or "Configuring" in line:
            progress.note("downloading" if "Downloading" in line else "configuring")

    source = ("--no-deps", "--no-cache-dir", "--no-binary", PACKAGE, PACKAGE)
    command = (*PIP, "wheel", "--verbose", *source, *PINNED, "--wheel-dir", str(folder))
    with _LOG.open("w") as log:
        status = children.run(command, on_line=follow, env=environment)
    progress.close("not compiled" if status else "compiled")
    if status:
        raise Failed(f"llama.cpp was not compiled. The whole output: {_LOG}. Its errors:\n{errors_in(lines)}")


def _environment(toolkit: Toolkit | None, hook: Path) -> dict[str, str]:
    """The environment of the build: the caller's, with our options behind those in CMAKE_ARGS."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_THE_BUILD}
    include = shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}")
    options = [environment.get("CMAKE_ARGS", ""), _NO_VISION, include]
    if toolkit:
        options.append(toolkit.option)
        environment["PATH"] = f"{toolkit.need().parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment | {"CMAKE_ARGS": " ".join(options).strip(), "PYTHONUNBUFFERED": "1"}


def _kept_folder(toolkit: Toolkit | None) -> Path:
    """The folder of the wheel that these sources, options, compilers and this machine would make."""
    facts = [
        [_pinned(), _NO_VISION, _NO_COMMON],
        [toolkit.kind, toolkit.version() if toolkit.find() else ""] if toolkit else [CPU],
        [os.environ.get(name, "") for name in _VARIABLES],
        [platform.machine(), _instructions(), *platform.libc_ver()],
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return _cache() / f"llama-{toolkit.kind if toolkit else CPU}-{digest}"


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(sys.prefix)
    return folder if os.access(folder, os.W_OK) else Path(sys.prefix)


def _instructions() -> str:
    """The instructions of this processor, for which the build is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _installed_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def _pinned() -> str:
    pin = re.search(rf"^{PACKAGE}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin, f"constraints.txt pins {PACKAGE}"
    return pin[1]


if __name__ == "__main__":
    main()
