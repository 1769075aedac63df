"""What is wrong with the settings themselves, and with what this user's processes may do: before anything runs."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from core.settings import Settings

_OPEN_FILES: Final = 4096
_FEW_OPEN_FILES: Final = 512
_MODE_OF_OTHERS: Final = 0o077


def timing(settings: Settings) -> list[Finding]:
    """Times that contradict one another: each contradiction, or that there is none."""
    pairs = (
        (
            Level.BAD,
            settings.heartbeat_seconds >= settings.lease_seconds / 2,
            f"heartbeat_seconds ({settings.heartbeat_seconds:g}) is not less than half of lease_seconds "
            f"({settings.lease_seconds:g}): one late heartbeat, and work that runs is given to another worker",
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
            f"silence_seconds ({settings.silence_seconds:g}) is less than two of poll_seconds "
            f"({settings.poll_seconds:g}) or heartbeat_seconds: /readyz calls healthy workers silent",
            "Set MILLRACE_SILENCE_SECONDS to three times MILLRACE_POLL_SECONDS.",
        ),
        (
            Level.WARNING,
            settings.drain_seconds > settings.lease_seconds,
            f"drain_seconds ({settings.drain_seconds:g}) is more than lease_seconds ({settings.lease_seconds:g}): "
            "a worker whose heart stops while it leaves has its work taken away before it is done",
            "Set MILLRACE_DRAIN_SECONDS to less, or the lease to more.",
        ),
        (
            Level.WARNING,
            settings.chat_timeout_seconds > 600,
            f"chat_timeout_seconds is {settings.chat_timeout_seconds:g}, and OpenAI's clients give up after 600",
            "Set MILLRACE_CHAT_TIMEOUT_SECONDS to less than 600, and the clients' timeout to more.",
        ),
    )
    found = [Finding(level, "timing", message, advice) for level, is_wrong, message, advice in pairs if is_wrong]
    return found or [Finding(Level.OK, "timing", f"leases of {settings.lease_seconds:g} s, renewed in time")]


def door(settings: Settings, *, has_key: bool | None) -> Finding:
    """Who may come in. `has_key`: is there a key in the database; None where that is not known."""
    if settings.is_loopback:
        return Finding(Level.OK, "door", f"{settings.host}: this machine only")
    if has_key:
        return Finding(Level.OK, "door", f"{settings.host}: whoever has a key")
    if settings.open_without_keys:
        message = f"{settings.host} is open: whoever reaches it may use it, and read what others of the tenant wrote"
        return Finding(Level.WARNING, "door", message, "millrace keys create; then MILLRACE_OPEN_WITHOUT_KEYS=false")
    message = f"{settings.host} is for others, and there is no key to keep anybody out"
    level = Level.WARNING if has_key is None else Level.BAD
    return Finding(level, "door", message, "millrace keys create, or listen on 127.0.0.1: nothing starts like this.")


def webhooks(settings: Settings) -> Finding:
    """Where this service may be made to connect to."""
    hosts = settings.webhook_hosts
    if "*" in [host.strip() for host in hosts.split(",")]:
        message = "webhook_hosts is *: who has a key decides which public hosts this service connects to"
        return Finding(Level.WARNING, "webhooks", message, "Name them: MILLRACE_WEBHOOK_HOSTS=hooks.example.com")
    return Finding(Level.OK, "webhooks", f"to {hosts}" if hosts else "off, as no host is named")


def open_files(limit: int | None = None) -> Finding:
    """Every stream and every connection is one."""
    number = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if number == resource.RLIM_INFINITY or number >= _OPEN_FILES:
        return Finding(Level.OK, "open files", f"{number} per process" if number >= 0 else "no limit")
    level = Level.BAD if number < _FEW_OPEN_FILES else Level.WARNING
    message = f"{number} per process; each stream and each connection takes one"
    return Finding(level, "open files", message, f"ulimit -n {_OPEN_FILES}, or LimitNOFILE= of the service's unit")


def privacy(settings: Settings) -> list[Finding]:
    """Directories that others of this machine may look into: prompts and answers are in there."""
    places = {"state": settings.state_dir, "file store": settings.files_root}
    findings = [_private(name, path) for name, path in places.items() if path.is_dir()]
    return [finding for finding in findings if finding is not None] or [
        Finding(Level.OK, "privacy", "what is stored is for this user only")
    ]


def _private(name: str, path: Path) -> Finding | None:
    mode = path.stat().st_mode & 0o777
    if not mode & _MODE_OF_OTHERS:
        return None
    message = f"others may enter the {name} {path} (mode {mode:04o}), where prompts and answers are"
    return Finding(Level.WARNING, "privacy", message, f"chmod 700 {path}")
