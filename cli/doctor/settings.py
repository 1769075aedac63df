"""Findings about the settings, and about limits of this user's processes, before anything runs."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from core.settings import Settings

_OPEN_FILES: Final = 4096
_FEW_OPEN_FILES: Final = 512
_OTHERS_MODE: Final = 0o077


def timing(settings: Settings) -> list[Finding]:
    """Report times that contradict one another."""
    pairs = (
        (
            Level.BAD,
            settings.heartbeat_seconds >= settings.lease_seconds / 2,
            f"heartbeat_seconds ({settings.heartbeat_seconds:g}) is not less than half of lease_seconds "
            f"({settings.lease_seconds:g}): one late heartbeat, and running work is given to another worker",
            "Set MILLRACE_HEARTBEAT_SECONDS to a sixth of MILLRACE_LEASE_SECONDS.",
        ),
        (
            Level.BAD,
            settings.commit_seconds >= settings.lease_seconds / 2,
            f"commit_seconds ({settings.commit_seconds:g}) is not less than half of lease_seconds "
            f"({settings.lease_seconds:g}): results may come too late to be written",
            "Set MILLRACE_COMMIT_SECONDS to less than a second.",
        ),
        (
            Level.WARNING,
            settings.silence_seconds < 2 * max(settings.poll_seconds, settings.heartbeat_seconds),
            f"silence_seconds ({settings.silence_seconds:g}) is less than twice poll_seconds "
            f"({settings.poll_seconds:g}) or heartbeat_seconds: /readyz calls healthy workers silent",
            "Set MILLRACE_SILENCE_SECONDS to three times MILLRACE_POLL_SECONDS.",
        ),
        (
            Level.WARNING,
            settings.drain_seconds > settings.lease_seconds,
            f"drain_seconds ({settings.drain_seconds:g}) is more than lease_seconds ({settings.lease_seconds:g}): "
            "a worker whose heartbeat stops during its shutdown loses its work before it has finished it",
            "Set MILLRACE_DRAIN_SECONDS to less, or the lease to more.",
        ),
        (
            Level.WARNING,
            settings.chat_timeout_seconds > 600,
            f"chat_timeout_seconds is {settings.chat_timeout_seconds:g}, and OpenAI's clients give up after 600",
            "Set MILLRACE_CHAT_TIMEOUT_SECONDS to less than 600, or the clients' timeout to more.",
        ),
    )
    found = [Finding(level, "timing", message, advice) for level, is_wrong, message, advice in pairs if is_wrong]
    return found or [Finding(Level.OK, "timing", f"leases of {settings.lease_seconds:g} s, renewed in time")]


def access(settings: Settings, *, has_key: bool | None) -> Finding:
    """Report which clients can use the server. `has_key`: whether a key exists in the database; None where that is unknown."""
    if settings.is_loopback:
        return Finding(Level.OK, "access", f"{settings.host}: this machine only")
    if has_key:
        return Finding(Level.OK, "access", f"{settings.host}: clients with a key")
    if settings.open_without_keys:
        message = f"{settings.host} is open: every client may use it, and read all files and batches of the tenant"
        return Finding(Level.WARNING, "access", message, "millrace keys create; then MILLRACE_OPEN_WITHOUT_KEYS=false")
    message = f"{settings.host} can be reached from other machines, and there is no key to restrict access"
    level = Level.WARNING if has_key is None else Level.BAD
    return Finding(level, "access", message, "millrace keys create, or listen on 127.0.0.1: nothing starts like this.")


def webhooks(settings: Settings) -> Finding:
    """Report the hosts that webhooks may reach."""
    hosts = settings.webhook_hosts
    if "*" in [host.strip() for host in hosts.split(",")]:
        message = "webhook_hosts is *: a client with a key decides which public hosts this service connects to"
        return Finding(Level.WARNING, "webhooks", message, "Name them: MILLRACE_WEBHOOK_HOSTS=hooks.example.com")
    return Finding(Level.OK, "webhooks", f"to {hosts}" if hosts else "off: no host is named")


def open_files(limit: int | None = None) -> Finding:
    """Check the limit of open files: every stream and every connection is one."""
    number = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if number == resource.RLIM_INFINITY or number >= _OPEN_FILES:
        return Finding(Level.OK, "open files", f"{number} per process" if number >= 0 else "no limit")
    level = Level.BAD if number < _FEW_OPEN_FILES else Level.WARNING
    message = f"{number} per process; each stream and each connection takes one"
    return Finding(level, "open files", message, f"ulimit -n {_OPEN_FILES}, or LimitNOFILE= of the service's unit")


def privacy(settings: Settings) -> list[Finding]:
    """Report directories with prompts and answers that other users may enter."""
    places = {"state": settings.state_dir, "file store": settings.files_root}
    findings = [_private(name, path) for name, path in places.items() if path is not None and path.is_dir()]
    return [finding for finding in findings if finding is not None] or [
        Finding(Level.OK, "privacy", "stored data is readable by this user only")
    ]


def _private(name: str, path: Path) -> Finding | None:
    mode = path.stat().st_mode & 0o777
    if not mode & _OTHERS_MODE:
        return None
    message = f"other users may enter the {name} {path} (mode {mode:04o}), which holds prompts and answers"
    return Finding(Level.WARNING, "privacy", message, f"chmod 700 {path}")
