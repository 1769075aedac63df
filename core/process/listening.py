"""Listen on an address of the settings, or explain why that is not possible."""

from __future__ import annotations

import errno
import socket
from typing import Final

from core.errors import ConfigError

_ADVICE: Final = {
    errno.EADDRINUSE: "Is Millrace running already? Otherwise choose another port with {port}.",
    errno.EACCES: "Ports below 1024 are for root: choose another with {port}.",
}


_SETTINGS: Final = {
    "PORT": ("--port or MILLRACE_PORT", "--host or MILLRACE_HOST"),
    "METRICS_PORT": ("MILLRACE_METRICS_PORT", "MILLRACE_METRICS_HOST"),
}


def bound_socket(host: str, port: int, *, setting: str = "PORT") -> socket.socket:
    """Return a socket bound to the address, whose port is this setting. Raises ConfigError, with the reason and the remedy."""
    of_port, of_host = _SETTINGS[setting]
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        advice = _ADVICE.get(error.errno or 0, "Name an address of this machine with {host}.")
        advice = advice.format(port=of_port, host=of_host)
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror or error}. {advice}") from None
    return listener
