"""Dockerfile, docker-compose.yml and .dockerignore keep what docs/containers.md promises. No test can run an image here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.settings import ROOT, Settings
from tests.unit.deploy.command_lines import parse

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RUN_STAGE = DOCKERFILE.split("FROM ${RUN_BASE}")[1]
OURS = ("migrate", "api", "clerk", "worker", "worker-gpu")


def started(profile: str) -> set[str]:
    """The services that compose starts with this profile."""
    return {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}


def is_sent(path: str) -> bool:
    """Is this path in the context of a build? By the rules of .dockerignore: the last pattern that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = path.split("/")
        prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        names = parts if pattern.startswith("**/") else []
        candidates = names or [prefix for prefix in prefixes if prefix.count("/") == pattern.count("/")]
        if any(fnmatch.fnmatchcase(candidate, pattern.removeprefix("**/")) for candidate in candidates):
            sent = line.startswith("!")
    return sent


def test_every_volume_of_ours_is_mounted_on_a_folder_that_the_user_of_the_image_owns() -> None:
    (owned,) = re.findall(r"install --directory --owner=millrace --group=millrace --mode=700 ([^\n]+)", RUN_STAGE)
    targets = {
        mount.split(":")[1]
        for name in OURS
        for mount in SERVICES[name]["volumes"]
        if mount.split(":")[0] in COMPOSE["volumes"]
    }
    assert targets == {SERVICES["api"]["environment"]["MILLRACE_FILES_DIR"]}
    assert {*targets, "/data"} == set(owned.split())
    assert RUN_STAGE.index("install --directory") < RUN_STAGE.index("USER millrace") < RUN_STAGE.index("VOLUME /data")
    assert "MILLRACE_STATE_DIR=/data" in RUN_STAGE
    number = re.search(r"useradd --uid (\d+)", RUN_STAGE)
    assert number
    assert f"chown {number[1]} " in (ROOT / "docs" / "containers.md").read_text()


def test_a_container_alone_starts_a_server_that_needs_a_key() -> None:
    assert 'CMD ["millrace", "serve", "--host", "0.0.0.0", "--create-key"]' in RUN_STAGE
    assert "OPEN_WITHOUT_KEYS" not in DOCKERFILE


def test_each_profile_starts_one_worker_and_the_default_is_the_cpu() -> None:
    common = {"postgres", "valkey", "migrate", "api", "clerk"}
    assert started("cpu") == common | {"worker"}
    assert started("gpu") == common | {"worker-gpu"}
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()
    assert SERVICES["worker"]["command"][-1] == "cpu"
    assert SERVICES["worker-gpu"]["build"]["args"]["GPU"] == "cuda"
    assert SERVICES["worker-gpu"]["image"] != SERVICES["worker"]["image"], "one has CUDA, the other has not"


def test_the_api_without_keys_is_published_on_loopback_only() -> None:
    assert SERVICES["api"]["environment"]["MILLRACE_OPEN_WITHOUT_KEYS"] == "true"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])


def test_the_build_is_not_for_one_processor() -> None:
    (options,) = re.findall(r'^ARG PORTABLE="([^"]+)"', DOCKERFILE, re.MULTILINE)
    assert options.split() == [
        "-DGGML_NATIVE=OFF",
        "-DGGML_BACKEND_DL=ON",
        "-DGGML_CPU_ALL_VARIANTS=ON",
        "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",  # where `engine.backends.llama.gguf` looks for the libraries
    ]
    assert 'CMAKE_ARGS="$PORTABLE $CMAKE_ARGS"' in DOCKERFILE


def test_the_image_builds_llama_cpp_as_the_makefile_does_and_before_it_has_the_code() -> None:
    build = DOCKERFILE[: DOCKERFILE.index(RUN_STAGE)]
    (command,) = re.findall(r"-m (tools\.install\S*) (.*?) &&", build)
    assert command[0] == "tools.install.llama"
    assert command[1].split() == ["--gpu", '"$GPU"', "--no-card"]
    assert build.index("tools.install.llama") < build.index("COPY api")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tools.install.llama", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--no-card" in done.stdout, "it runs before any package is installed (-S)"


def test_an_argument_of_the_build_is_declared_where_it_is_used() -> None:
    head, *stages = DOCKERFILE.split("\nFROM ")
    assert "\nARG GPU=cpu\n" in head
    assert re.findall(r"^ARG (\w+)=(\S+)", head, re.MULTILINE)[1:] == [
        ("BASE", "debian:trixie-slim"),
        ("RUN_BASE", "${BASE}"),
    ]
    for stage in stages:
        used = set(re.findall(r"\$\{?([A-Z_]+)", stage.partition("\n")[2])) - {"PATH"}
        assert used <= set(re.findall(r"^ARG (\w+)", stage, re.MULTILINE))
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert {*SERVICES["worker-gpu"]["build"]["args"]} <= declared


@pytest.mark.parametrize(
    "path",
    [
        "models/mine-70b.gguf", "models/mine.yaml", "models/big/part.safetensors", ".state/postgres/base/1", ".env",
        ".git/HEAD", ".venv/bin/python", "api/__pycache__/app.pyc", "engine/backends/__pycache__/x.pyc", "millrace.toml",
        "api/.mypy_cache/x", "tests/conftest.py", "backup/2026/files/a", "models/.env",
    ],
)  # fmt: skip
def test_weights_state_keys_and_caches_stay_out(path: str) -> None:
    assert not is_sent(path)


def test_everything_that_the_dockerfile_copies_is_sent() -> None:
    sources = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)([^\n]+)", DOCKERFILE, re.MULTILINE)]
    named = {source for line in sources for source in line}
    tracked = subprocess.run(["git", "ls-files", *named], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [path for path in tracked.splitlines() if not path.startswith("models/")]
    assert len(files) > 200
    assert [path for path in files if not is_sent(path)] == []
    assert is_sent("models/demo.gguf")
    assert is_sent("models/demo.yaml")


def test_each_command_of_compose_parses_and_each_variable_is_a_setting() -> None:
    for name in OURS:
        service = SERVICES[name]
        checks = [service["healthcheck"]["test"][1:]] if "test" in service["healthcheck"] else []
        for command in [service["command"], *checks]:
            assert command[0] == "millrace"
            parse(command[1:])
        for variable in service["environment"]:
            assert variable.removesuffix("_FILE").removeprefix("MILLRACE_").lower() in Settings.model_fields, variable


def test_passwords_are_files_and_processes_are_asked_themselves(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "compose" / "secrets.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "deploy" / "compose" / "secrets.sh").read_text())
    for _ in range(2):
        subprocess.run(["sh", script], check=True, capture_output=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {each["file"] for each in COMPOSE["secrets"].values()} == {f"./secrets/{name}" for name in made}
    assert made["postgres_password"] in made["database_url"]
    assert f"requirepass {made['valkey_password']}\n" in made["valkey.conf"]
    assert Settings(database_url=made["database_url"], redis_url=made["redis_url"]).redis_url
    for name, service in SERVICES.items():
        used = set(re.findall(r"/run/secrets/(\w+)", str(service)))
        assert used <= set(service["secrets"]) <= set(COMPOSE["secrets"]), name
        assert not re.search(r"PASSWORD'|://", str(service.get("environment"))), name
    for name in ("api", "clerk", "worker", "worker-gpu"):
        assert SERVICES[name]["healthcheck"]["test"][:3] == ["CMD", "millrace", "health"], name
        assert SERVICES[name]["read_only"]
        assert SERVICES[name]["tmpfs"] == ["/tmp"]
