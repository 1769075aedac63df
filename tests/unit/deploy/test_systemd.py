"""The units of systemd: valid, hardened, and with commands and settings that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import ROOT, Settings
from tests.unit.deploy.command_lines import parse

FOLDER = ROOT / "deploy" / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
MOST_EXPOSED = 30  # of 100; systemd calls less than 40 "OK"


def lines(name: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (FOLDER / name).read_text(), re.MULTILINE)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with the command where this environment has it, and with names as they are when they are started."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for unit in FOLDER.iterdir():
        text = unit.read_text().replace("/opt/millrace/bin/millrace", str(Path(sys.executable).with_name("millrace")))
        (tmp_path / unit.name.replace("@.", "@cuda:0.")).write_text(text)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)


def test_systemd_accepts_the_units(installed: Path) -> None:
    units = sorted(str(path) for path in installed.iterdir() if path.suffix in (".service", ".target"))
    done = analyze("verify", "--man=no", *units)
    own = [line for line in done.stderr.splitlines() if "millrace" in line]
    assert own == []
    broken = installed / "millrace-api.service"
    broken.write_text(broken.read_text() + "[Service]\nKilMode=mixed\n")
    assert "KilMode" in analyze("verify", "--man=no", str(broken)).stderr, "it looks at the units"


def test_the_units_are_hardened(installed: Path) -> None:
    units = [str(path) for path in installed.glob("*.service")]
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", *units)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


@pytest.mark.parametrize("name", SERVICES)
def test_commands_and_settings_of_units_exist(name: str) -> None:
    (command,) = lines(name, "ExecStart")
    words = command.split()
    assert words[0] == "/opt/millrace/bin/millrace"
    parse(words[1:])
    variables = [word.partition("=")[0] for line in lines(name, "Environment") for word in line.split()]
    for variable in variables:
        field = variable.removesuffix("_FILE").removeprefix("MILLRACE_").lower()
        assert field in Settings.model_fields, variable
    credentials = [credential.partition(":")[0] for credential in lines(name, "LoadCredential")]
    assert credentials == re.findall(r"%d/(\w+)", (FOLDER / name).read_text()), "each is used, and each used one loaded"


@pytest.mark.parametrize("name", [name for name in SERVICES if "migrate" not in name])
def test_a_service_drains_itself_and_reports_for_itself(name: str) -> None:
    assert lines(name, "KillMode") == ["mixed"], "else systemd stops engines before their worker has drained"
    assert float(lines(name, "TimeoutStopSec")[0]) >= Settings().drain_seconds + 10
    assert (lines(name, "Type"), lines(name, "NotifyAccess")) == (["notify"], ["main"])
    assert lines(name, "WatchdogSec")
