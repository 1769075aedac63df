"""The services of a fleet on its first host: Postgres behind PgBouncer, Valkey behind TLS, S3, and nginx before the apis.

Clients come with a password and TLS. The bundled Postgres and Valkey are built without TLS: PgBouncer ends it for Postgres, and
a forwarder for Valkey.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg
import pytest
import redis
import trustme

from cli.stack.postgres import Postgres
from cli.stack.valkey import find_binary
from core.process.clone import set_parent_death_signal
from core.process.runtime_dirs import socket_directory
from core.settings import ROOT
from tests.fleet.hosts import Host
from tests.support.forwarder import Forwarder
from tests.support.pgbouncer import PgBouncer
from tests.support.s3_server import S3Server
from tests.support.stack import wait_for

POSTGRES_PORT: Final = 6432
VALKEY_PORT: Final = 6380
API_PORT: Final = 8000
HTTPS_PORT: Final = 8443
_NGINX: Final = ROOT / "deploy" / "nginx" / "millrace.conf"


class FleetServices:
    """The services from `start` to `close`. `environment` is that of a process of the fleet."""

    def __init__(self, folder: Path, host: Host, apis: list[Host]) -> None:
        if (nginx := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")) is None:
            pytest.skip("needs nginx")
        self._folder, self._host, self._apis, self._nginx_program = folder, host, apis, nginx
        self._password = secrets.token_urlsafe(9) + "@:/%#"  # which a URL has to quote
        authority = trustme.CA()
        self.authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._certificate = authority.issue_cert(host.address, "127.0.0.1")
        self.postgres = Postgres(folder / "postgres", socket_directory(folder), folder / "postgres.log", num_devices=4)
        self._pgbouncer = PgBouncer(
            self.postgres.user,
            POSTGRES_PORT,
            users={"millrace": self._password},
            files={
                "server.crt": b"".join(blob.bytes() for blob in self._certificate.cert_chain_pems),
                "server.key": self._certificate.private_key_pem.bytes(),
            },
            enter=host.enter,
            pooler={"listen_addr": host.address},
        )
        self._s3 = S3Server(host.address)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._valkey_tls: Forwarder | None = None

    @property
    def database_url(self) -> str:
        """The database behind PgBouncer."""
        tls = f"sslmode=verify-full&sslrootcert={self.authority}"
        return f"postgresql://millrace:{self._quoted}@{self._host.address}:{POSTGRES_PORT}/millrace?{tls}"

    @property
    def redis_url(self) -> str:
        """Valkey behind TLS."""
        return f"rediss://:{self._quoted}@{self._host.address}:{VALKEY_PORT}/0?ssl_ca_certs={self.authority}"

    @property
    def environment(self) -> dict[str, str]:
        """The addresses of the services."""
        urls = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, "MILLRACE_FILES_URL": self._files_url}
        return {**urls, **self._s3.environment, "FORWARDED_ALLOW_IPS": self._host.address}

    @property
    def _quoted(self) -> str:
        return quote(self._password, safe="")

    def start(self) -> None:
        """Return when all answer."""
        self.postgres.launch()
        self.postgres.wait()
        self._host.call(partial(self._pgbouncer.start))
        self._start_valkey()
        self._host.call(self._s3.start)
        self._files_url = self._host.call(partial(self._s3.create_bucket, "fleet"))
        self._start_nginx()
        wait_for(lambda: self._host.call(self._is_up), "PgBouncer answers", 30)

    def _is_up(self) -> bool:
        psycopg.connect(self.database_url, connect_timeout=3).close()
        return True

    def close(self) -> None:
        """End all, clients before what they use."""
        for process in self._processes:
            process.terminate()
            process.wait(20)
        if self._valkey_tls is not None:
            self._valkey_tls.close()
        self._s3.close()
        self._pgbouncer.close()
        self.postgres.stop()

    def _start_valkey(self) -> None:
        path = socket_directory(self._folder) / "valkey.sock"
        options = [
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--dir",
            str(self._folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._run([str(find_binary()), *options, "--requirepass", self._password], self._folder / "valkey.log")

        def answers() -> bool:
            with redis.Redis(unix_socket_path=str(path), password=self._password) as client:
                return bool(client.ping())

        wait_for(answers, "Valkey answers", 30)
        listener = self._host.call(lambda: socket.create_server((self._host.address, VALKEY_PORT), backlog=512))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        self._valkey_tls = Forwarder(listener, str(path), tls=context)

    def _start_nginx(self) -> None:
        """Run nginx with deploy/nginx: only addresses and the paths of files are others."""
        self._certificate.private_key_pem.write_to_path(str(self._folder / "millrace.key"))
        for blob in self._certificate.cert_chain_pems:
            blob.write_to_path(str(self._folder / "millrace.crt"), append=True)
        server = _NGINX.read_text().replace("/etc/nginx/", f"{self._folder}/")
        for number, api in reversed(list(enumerate(self._apis, start=1))):
            server = server.replace(f"10.0.0.{number}:8000", f"{api.address}:{API_PORT}")
        server = server.replace("listen 443 ssl", f"listen {self._host.address}:{HTTPS_PORT} ssl")
        user = "user root;" if os.getuid() == 0 else ""
        paths = "".join(
            f"{name}_temp_path {self._folder / 'nginx'};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self._folder / "nginx.conf").write_text(
            f"{user} daemon off; worker_processes 1; pid {self._folder / 'nginx.pid'}; error_log stderr warn;\n"
            f"events {{}}\nhttp {{ access_log off; {paths}\n{server}\n}}\n"
        )
        command = [self._nginx_program, "-c", str(self._folder / "nginx.conf"), "-e", "stderr"]
        self._host.call(partial(self._run, command, self._folder / "nginx.log"))

    def _run(self, command: list[str], log: Path) -> None:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                preexec_fn=partial(set_parent_death_signal, os.getpid(), signal.SIGTERM),
            )
        self._processes.append(process)
