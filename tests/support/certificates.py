"""Certificates of servers on loopback, made by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def make_certificate(file: Path, name: str) -> Path:
    """Write a key and a certificate of its own authority into `file`; `name` is such as `DNS:hooks.example.com`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=server"]
    make += ["-addext", f"subjectAltName={name}", "-keyout", str(file), "-out", "-"]
    certificate = subprocess.run(make, check=True, capture_output=True).stdout
    with file.open("ab") as stream:
        stream.write(certificate)
    return file


def server_context(certificate: Path) -> ssl.SSLContext:
    """TLS of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
