"""Create an environment for each client, each server of others, and the browser of a machine without one, in `.venv/clients`.

The test of one that cannot be installed is skipped, which is a failure on CI (see tests/conftest.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

FOLDER: Final = Path(sys.prefix) / "clients"
PYTHON: Final = {
    "langchain": ["langchain-openai==1.7.4"],
    "litellm": ["litellm==1.110.2"],
    "instructor": ["instructor==1.17.0"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "llama_server": ["xllamacpp==2026.10.11549"],  # llama.cpp's own server, prebuilt
    "llama_cpp_server": ["sse-starlette==3.7.0", "starlette-context==0.5.1"],  # what llama_cpp.server imports besides
}
NODE: Final = {"node": ["openai@6.49.0", "ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"]}
BROWSER: Final = {"chromium": ["@sparticuz/chromium@147.0.0"]}  # where find_chromium finds no other


def main() -> None:
    """Create the environments that are missing or out of date."""
    FOLDER.mkdir(exist_ok=True)
    browser = {} if installed_chromium() else BROWSER
    for name, packages in {**PYTHON, **NODE, **browser}.items():
        done = FOLDER / name / "installed"
        if done.exists() and done.read_text() == " ".join(packages):
            continue
        print(f"Installing {name} …", flush=True)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        try:
            (_install_python if name in PYTHON else _install_node)(FOLDER / name, packages)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"  not possible, so its test will be skipped: {error}", flush=True)
        else:
            done.write_text(" ".join(packages))


def installed_chromium() -> str | None:
    """The browser that MILLRACE_CHROMIUM names, else the first on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
    return os.environ.get("MILLRACE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _install_python(folder: Path, packages: list[str]) -> None:
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *packages], check=True)


def _install_node(folder: Path, packages: list[str]) -> None:
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true}\n')
    npm = [
        "npm",
        "install",
        "--silent",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--save-exact",
    ]
    subprocess.run([*npm, *packages], cwd=folder, check=True)


if __name__ == "__main__":
    main()
