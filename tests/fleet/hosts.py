"""Hosts of a test: a network namespace each, on one bridge. Nothing of them is seen outside, and nothing outlives the test.

A thread stands for each host. It unshares the network and the host name for itself alone, so its sockets and the processes
that it starts are in that network, and the namespace ends with the last of them. Where namespaces are refused, a
host is an address of loopback; then its network cannot be cut.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


class Refused(Exception):
    """Namespaces are refused here."""


class Host:
    """One host; `call` runs a function there, and processes that it starts stay there."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def call(self, action: Callable[[], _Result]) -> _Result:
        """Run a function on this host, and return its result."""
        return self._thread.submit(action).result()

    def enter(self) -> None:
        """Take the calling thread to this host."""

    def close(self) -> None:
        """End its thread; its processes must have ended."""
        self._thread.shutdown()


class NamespaceHost(Host):
    """A host with a network namespace."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name, address)
        try:
            self.thread_id = self.call(partial(_leave_network, name))
        except BaseException:
            self.close()
            raise
        self._namespaces = {
            kind: os.open(f"/proc/self/task/{self.thread_id}/ns/{kind}", os.O_RDONLY) for kind in _KINDS
        }

    def ip(self, arguments: str) -> None:
        """Run `ip` there."""
        self.call(partial(_run_ip, arguments))

    def enter(self) -> None:
        """Take the calling thread to this host. System calls only."""
        for kind, number in _KINDS.items():
            if _libc.setns(self._namespaces[kind], number) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        """End its thread, and with it the namespace."""
        super().close()
        for descriptor in getattr(self, "_namespaces", {}).values():
            os.close(descriptor)


_KINDS: Final = {"net": _CLONE_NEWNET, "uts": _CLONE_NEWUTS}


class Network:
    """Hosts `host1`, `host2` … on one network, from `start` to `close`."""

    def __init__(self, number: int) -> None:
        self._bridge: NamespaceHost | None = None
        self.hosts: list[Host] = []
        try:
            self._bridge = NamespaceHost("bridge", "")
            self._bridge.ip("link add br0 type bridge")
            self._bridge.ip("link set br0 up")
            for index in range(1, number + 1):
                self.hosts.append(self._connect(self._bridge, index))
        except (Refused, FileNotFoundError, subprocess.CalledProcessError):
            self.close()
            self._bridge, self.hosts = (
                None,
                [Host(f"host{index}", f"127.{os.getpid() % 200 + 20}.0.{index}") for index in range(1, number + 1)],
            )

    @property
    def can_cut(self) -> bool:
        """Can a host be cut off from the others?"""
        return self._bridge is not None

    def cut(self, host: Host) -> None:
        """Drop all packets from and to a host; connections stay open."""
        self._set(host, "down")

    def join(self, host: Host) -> None:
        """Let packets pass again."""
        self._set(host, "up")

    def close(self) -> None:
        """End all hosts."""
        for host in (*self.hosts, *filter(None, [self._bridge])):
            host.close()

    def _connect(self, bridge: NamespaceHost, index: int) -> Host:
        host = NamespaceHost(f"host{index}", f"10.0.0.{index}")
        try:
            bridge.ip(f"link add {host.name} type veth peer name eth0 netns {host.thread_id}")
            bridge.ip(f"link set {host.name} master br0 up")
            for command in ("link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
                host.ip(command)
        except BaseException:
            host.close()
            raise
        return host

    def _set(self, host: Host, state: str) -> None:
        assert self._bridge is not None, "only a host with a namespace can be cut off"
        self._bridge.ip(f"link set {host.name} {state}")


def _leave_network(name: str) -> int:
    """Give the calling thread a network and a host name of its own; return its id. Raises Refused."""
    if _libc.unshare(_CLONE_NEWNET | _CLONE_NEWUTS) != 0:
        raise Refused
    if _libc.sethostname(name.encode(), len(name)) != 0:
        raise Refused
    return threading.get_native_id()


def _run_ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
