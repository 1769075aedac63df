"""`millrace doctor`: what this machine has and lacks; every finding names the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cli.doctor.findings import Finding, Level
from cli.errors import ExitCode
from cli.options import AsJson, ModelsDir, StateDir, given_settings
from cli.output import print_json, printable

if TYPE_CHECKING:
    from core.settings import Settings

_MARKS: Final = {Level.OK: "ok  ", Level.WARNING: "warn", Level.BAD: "BAD "}


def doctor(
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine for problems that keep Millrace from running. Exit code 1: there is one."""
    findings = list(_findings(state_dir, models_dir))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            print(printable(f"{_MARKS[finding.level]}  {finding.name}: {finding.message}"))
            if finding.advice:
                print(printable(f"      → {finding.advice}"))
    is_bad = any(finding.level is Level.BAD for finding in findings)
    raise typer.Exit(ExitCode.ERROR if is_bad else ExitCode.FINE)


def _findings(state_dir: Path | None, models_dir: Path | None) -> list[Finding]:
    from cli.doctor import devices as device_findings
    from cli.doctor import files as file_findings
    from cli.doctor import machine
    from cli.doctor import settings as settings_findings
    from cli.doctor import stack as stack_findings
    from core.cpu_cores import usable_cores
    from core.devices.inventory import read_inventory
    from core.devices.selection import default_devices
    from core.errors import ConfigError

    inventory = read_inventory()
    findings = [machine.python(), machine.compiler(), *device_findings.devices(inventory, usable_cores())]
    try:
        settings = given_settings(state_dir=state_dir, models_dir=models_dir)
    except ConfigError as error:
        return [*findings, Finding(Level.BAD, "settings", str(error), "Correct the variable or millrace.toml.")]
    checks: tuple[Callable[[], list[Finding]], ...] = (
        lambda: [machine.disk(settings.state_dir)],
        lambda: [machine.port(settings.host, settings.port)],
        lambda: machine.models(settings.models_dir),
        lambda: stack_findings.services(settings),
        lambda: [stack_findings.state(settings.state_dir)],
        lambda: [stack_findings.schema(settings)],
        lambda: [file_findings.file_store(settings)],
        lambda: settings_findings.timing(settings),
        lambda: [settings_findings.webhooks(settings), settings_findings.open_files()],
        lambda: settings_findings.privacy(settings),
        lambda: _service_findings(settings, len(default_devices(inventory))),
    )
    for check in checks:
        findings += check()
    return findings


def _service_findings(settings: Settings, num_devices: int) -> list[Finding]:
    """Findings about running services, and about access, which depends on keys in the database."""
    from cli.doctor import settings as settings_findings
    from cli.doctor.database import database_findings
    from cli.doctor.queue import queue_findings
    from cli.stack.services import running_database, running_queue

    findings: list[Finding] = []
    has_key = None
    if database_url := settings.database_url or running_database(settings.state_dir):
        findings, has_key = database_findings(settings, database_url, num_devices)
    if redis_url := settings.redis_url or running_queue(settings.state_dir):
        findings += queue_findings(redis_url)
    return [settings_findings.access(settings, has_key=has_key), *findings]
