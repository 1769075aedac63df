"""Findings about the machine: Python, a compiler, disk, a free port, memory for the models."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from cli.address import host_to_call
from cli.doctor.findings import Finding, Level
from cli.doctor.upstreams import upstreams
from core.errors import ConfigError
from core.models.engine_options import BackendKind
from core.models.folder_files import is_yaml
from core.models.model_files import ModelConfig, weight_paths
from core.models.models_folder import FolderReader
from core.process.listening import bound_socket

_GIB: Final = 1 << 30
_LOW_DISK: Final = 2 * _GIB
_NO_DISK: Final = _GIB // 4
_CHECK_SECONDS: Final = 120.0
_ANSWER_SECONDS: Final = 2.0
_ANSWER_BYTES: Final = 1 << 12
_GGUF: Final = b"GGUF"


def python() -> Finding:
    """Check the Python version."""
    level = Level.OK if sys.version_info >= (3, 11) else Level.BAD
    return Finding(
        level, "python", platform.python_version(), "" if level is Level.OK else "Install Python 3.11 or later."
    )


def compiler() -> Finding:
    """Check for a C++ compiler: installing compiles llama.cpp; running needs none."""
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        return Finding(Level.OK, "compiler", found)
    advice = "Only an installation needs one: apt install g++, dnf install gcc-c++, or xcode-select --install."
    return Finding(Level.WARNING, "compiler", "no C++ compiler", advice)


def disk(state_dir: Path) -> Finding:
    """Check the free space for data and files."""
    place = next(path for path in (state_dir.resolve(), *state_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    message = f"{free / _GIB:.1f} GiB free for {state_dir}"
    if free >= _LOW_DISK:
        return Finding(Level.OK, "disk", message)
    level = Level.WARNING if free >= _NO_DISK else Level.BAD
    return Finding(level, "disk", message, "Delete files (millrace files delete), or choose another --state-dir.")


def port(host: str, number: int) -> Finding:
    """Check that the api can listen on the port."""
    try:
        bound_socket(host, number).close()
    except ConfigError as error:
        if (version := _served_version(host, number)) is not None:
            return Finding(Level.OK, "port", f"{host}:{number} has a running Millrace, version {version}")
        problem, _, advice = str(error).partition(". ")
        return Finding(Level.WARNING, "port", problem, advice)
    return Finding(Level.OK, "port", f"{host}:{number} is free")


def _served_version(host: str, number: int) -> str | None:
    """The version of the Millrace that answers on a port; None if something else does, or nothing."""
    connection = HTTPConnection(host_to_call(host), number, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/version")
        answer = json.loads(connection.getresponse().read(_ANSWER_BYTES))
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    version = answer.get("version") if isinstance(answer, dict) else None
    return version if isinstance(version, str) else None


def models(folder: Path, meminfo: Path = Path("/proc/meminfo")) -> list[Finding]:
    """Name each file of the folder that cannot be used, and compare the sizes of the models with the available memory."""
    try:
        contents = FolderReader(folder, need_weights=True).read()
    except ConfigError as error:
        return [Finding(Level.BAD, "models", str(error), "Create it, or name another folder with --models-dir.")]
    findings = [_file_finding(file, problem) for file, problem in contents.problems.items()]
    models = sorted(contents.models.values(), key=lambda model: model.name)
    if not models:
        return [
            *findings,
            Finding(Level.BAD, "models", f"none in {folder}", "Add one: millrace models add FILE, or hf:ORG/REPO."),
        ]
    remarks, total = _engine_remarks(models), sum(map(_weights_bytes, models))
    for model in models:
        if model.backend is not BackendKind.OPENAI:
            findings += _model_findings(model, remarks.get(model.name, {}))
    findings += _fallback_findings(models)
    findings += upstreams([model for model in models if model.backend is BackendKind.OPENAI])
    free = _available_bytes(meminfo)
    if free is not None:
        message = f"{free / _GIB:.1f} GiB available, models take {total / _GIB:.2f} GiB and their contexts more"
        advice = "Serve fewer models (worker --models), or take smaller quantisations." if total > free else ""
        findings.append(Finding(Level.WARNING if advice else Level.OK, "memory", message, advice))
    return findings


def _fallback_findings(models: Sequence[ModelConfig]) -> list[Finding]:
    """Name each fallback that is no model here: chats skip it."""
    served = {name for model in models for name in (model.name, *model.aliases)}
    return [
        Finding(
            Level.WARNING,
            f"model {model.name}",
            f"its fallback {name} is not served here",
            "Correct `fallback` in its file, or add that model.",
        )
        for model in models
        for name in model.fallback
        if name not in served
    ]


def _model_findings(model: ModelConfig, remarks: Mapping[str, str | None]) -> list[Finding]:
    """Findings about a model that an engine of ours computes."""
    name, size = f"model {model.name}", _weights_bytes(model)
    what = f"{size / _GIB:.2f} GiB"
    if model.backend is BackendKind.FAKE:
        return [Finding(Level.OK, name, "the fake backend, without weights")]
    if model.backend is BackendKind.TRANSFORMERS:
        what = f"{what} in {model.weights}" if size else f"{model.weights}, not downloaded yet"
    if model.backend is BackendKind.LLAMA and not _is_gguf(Path(model.weights)):
        advice = "The file does not begin with the letters GGUF: download or convert it again."
        return [Finding(Level.BAD, name, what, advice)]
    if error := remarks.get("error"):
        findings = [Finding(Level.BAD, name, error, "Download or convert it again.")]
    else:
        findings = [Finding(Level.OK, name, what)]
    if warning := remarks.get("warning"):
        findings.append(Finding(Level.WARNING, name, warning))
    return findings


def _weights_bytes(model: ModelConfig) -> int:
    return sum(path.stat().st_size for path in weight_paths(model))


def _file_finding(file: str, problem: str) -> Finding:
    """A YAML file that cannot be used stops the start; a GGUF file does not."""
    if is_yaml(file):
        return Finding(Level.BAD, f"file {file}", problem, "Correct or remove the file.")
    return Finding(Level.WARNING, f"file {file}", problem)


def _engine_remarks(models: Sequence[ModelConfig]) -> dict[str, dict[str, str | None]]:
    """The remarks of an engine on each file, by model; empty where the engine cannot be run."""
    checks = [
        {
            "name": model.name,
            "path": model.parameters.model,
            "backend": model.backend,
            "trust_remote_code": model.trust_remote_code,
            "template": model.chat_template,
            "is_chat": not model.embeddings,
        }
        for model in models
        if model.backend is BackendKind.LLAMA or (model.backend is BackendKind.TRANSFORMERS and weight_paths(model))
    ]
    command = [sys.executable, "-P", "-m", "engine.process.check"]
    try:
        done = subprocess.run(
            command, input=json.dumps(checks), capture_output=True, text=True, timeout=_CHECK_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {found["name"]: found for found in json.loads(done.stdout)}


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_GGUF)) == _GGUF


def _available_bytes(meminfo: Path) -> int | None:
    """Available memory in bytes; None where the system does not report it."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
