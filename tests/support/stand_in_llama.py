"""A folder to install in: the Makefile and its tools, and stand-ins for llama.cpp, for another package and for toolkits.

`make`, pip and the environment are real. The stand-in of llama-cpp-python is a source package whose backend prints what CMake and
Ninja print, and makes a wheel whose library files follow the options. Environment variables set how it behaves:
STAND_IN_COMPILE is `fails`, `waits` or `ignores` (the options), STAND_IN_CARD is 1 where a GPU can be used.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pip

from core.settings import ROOT

_MODULES: Final = (
    "api/__main__", "cli/main", "engine/process/server", "kombu/transport/redis", "workers/consumers/main",
    "workers/launcher/launcher",
)  # fmt: skip
_PROJECT: Final = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "{name}"
version = "{version}"
dependencies = {dependencies}
"""
_BACKEND: Final = """
import json, os, pathlib, shlex, time, zipfile

def _wheel(folder, name, version, files, tag="py3-none-any"):
    stem = f"{name}-{version}"
    info = f"{stem}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\\nGenerator: stand-in\\nRoot-Is-Purelib: true\\nTag: {tag}\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(folder) / f"{stem}-{tag}.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return f"{stem}-{tag}.whl"
"""
_LLAMA: Final = """
def build_wheel(folder, config_settings=None, metadata_directory=None):
    options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    how = os.environ.get("STAND_IN_COMPILE")
    print("*** Configuring CMake...", flush=True)
    for number in range(1, 41):
        print(f"[{number}/40] c++ -c file{number}.cpp", flush=True)
        if number == 20 and how == "waits":
            pathlib.Path(os.environ["STAND_IN_FIFO"]).read_text()
        if number == 30 and how == "fails":
            print("file30.cpp:7:1: error: unknown type name", flush=True)
            raise SystemExit(1)
    kinds = [kind for kind in ("cuda", "hip", "vulkan") if f"-DGGML_{kind.upper()}=ON" in options and how != "ignores"]
    includes = [option.partition("=")[2] for option in options if "INCLUDE=" in option]
    built = {"options": options, "included": [pathlib.Path(path).read_text() for path in includes]}
    return _wheel(folder, "llama_cpp_python", "0.3.36", {
        "llama_cpp/__init__.py":
            "import os\\ndef llama_supports_gpu_offload():\\n    return os.environ.get('STAND_IN_CARD') == '1'\\n",
        "llama_cpp/_ggml.py": "libggml = None\\n",
        "llama_cpp/built.json": json.dumps(built),
        **{f"llama_cpp/lib/libggml-{kind}.so": "" for kind in ("base", "cpu", *kinds)},
    })
"""
_OTHER: Final = """
def build_wheel(folder, config_settings=None, metadata_directory=None):
    return _wheel(folder, "other_package", "1.0", {"other_package.py": ""})
"""
_MILLRACE: Final = """
def build_editable(folder, config_settings=None, metadata_directory=None):
    return _wheel(folder, "millrace", "0.1.0", {"millrace.pth": os.getcwd()})
"""


class Installation:
    """A folder with a Makefile; `make` runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache, self.toolkits = folder / "cache", folder / "toolkits"
        packages = folder.parent / "packages"  # pip splits PIP_FIND_LINKS at spaces, which `folder` may have
        for made in (self.toolkits, packages):
            made.mkdir(parents=True)
        for name in ("Makefile", "constraints.txt", "tools/__init__.py", "tools/install"):
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            shutil.copytree(ROOT / name, place) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, place)
        for module in _MODULES:
            path = folder / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _write_sources(packages, "llama-cpp-python", "0.3.36", _BACKEND + _LLAMA)
        _write_sources(packages, "other-package", "1.0", _BACKEND + _OTHER)
        (folder / "backend.py").write_text(_BACKEND + _MILLRACE)
        self.need("other-package")
        self.environment = {
            "PATH": str(self.toolkits), "HOME": str(folder), "XDG_CACHE_HOME": str(self.cache), "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(packages), "PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(folder / "pip_cache"),
        }  # fmt: skip
        self.make_environment()

    def make_environment(self) -> None:
        """Make `.venv` anew, as the Makefile does, without the network."""
        shutil.rmtree(self.folder / ".venv", ignore_errors=True)
        venv.create(self.folder / ".venv", symlinks=True)
        source, target = Path(pip.__file__).parent, next((self.folder / ".venv/lib").glob("python*/site-packages"))
        for path in (source, *source.parent.glob("pip-*.dist-info")):
            (target / path.name).symlink_to(path)
        (self.folder / ".venv" / "python").touch()

    def need(self, *others: str) -> None:
        """Set the packages that the project needs beside llama.cpp."""
        needed = json.dumps(["llama-cpp-python==0.3.36", *others])
        (self.folder / "pyproject.toml").write_text(
            _PROJECT.format(name="millrace", version="0.1.0", dependencies=needed)
        )

    def add_toolkit(self, compiler: str) -> None:
        """Put a compiler on PATH."""
        path = self.toolkits / compiler
        path.write_text("#!/bin/sh\necho version 1\n")
        path.chmod(0o755)

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start make, in a process group of its own, with output and errors in one pipe."""
        make = shutil.which("make")
        assert make
        return subprocess.Popen(
            [make, *arguments], cwd=self.folder, env=self.environment | dict(environment or {}), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def make(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit status of make, and its output."""
        process = self.start(*arguments, environment=environment)
        output, _ = process.communicate(timeout=100)
        return process.returncode, output

    def built(self) -> dict[str, Any]:
        """The options that the installed stand-in was built with."""
        (path,) = (self.folder / ".venv").glob("lib/python*/site-packages/llama_cpp/built.json")
        built: dict[str, Any] = json.loads(path.read_text())
        return built


def _write_sources(folder: Path, name: str, version: str, backend: str) -> None:
    """Write a source package."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": _PROJECT.format(name=name, version=version, dependencies="[]"),
        "backend.py": backend,
    }
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{stem}/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
