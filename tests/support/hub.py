"""A stand-in for the Hugging Face Hub on loopback, which speaks its protocol to the unmodified client, with faults.

    python -m tests.support.hub --folder F [--port 0] [--gated org/repo] [--token T] [--cut BYTES] [--busy N] [--xet]

A repository is a folder F/org/repo; its one revision is `main`, also known by the hash of its files. Files of at least 1 KiB, and
all GGUF files, are stored "large": `resolve` redirects to another host name, which refuses credentials, as a signed address does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LARGE: Final = 1 << 10
_API: Final = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?")
_RESOLVE: Final = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_STORED: Final = re.compile(r"/stored/([0-9a-f]{64})")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Faults:
    """Faults of answers with file contents; each is used up by one answer, in order, and then gone."""

    cut_after: list[int] = field(default_factory=list)  # close the connection after that many bytes
    statuses: list[int] = field(default_factory=list)  # answer so instead
    api_statuses: list[int] = field(default_factory=list)  # answers of the API instead
    wrong_bytes: int = 0  # answers with a wrong last byte
    ignores_range: bool = False
    redirect_to: str = ""  # of `resolve`


class StandInHub:
    """A server with the repositories of a folder, and what it was asked. `gated`: its repositories that need `token`."""

    def __init__(
        self, folder: Path, *, port: int = 0, gated: frozenset[str] = frozenset(), token: str = "", is_xet: bool = False
    ) -> None:
        self.folder = folder
        self.gated = gated
        self.token = token
        self.is_xet = is_xet
        self.faults = Faults()
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.leaks: list[str] = []  # requests to the store that carried credentials
        self._hashes: dict[tuple[Path, int, int], str] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.store = f"http://localhost:{self.port}"  # another host, as that of signed addresses

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def files(self, repository: str) -> dict[str, Path] | None:
        """The files of a repository by name, or None."""
        root = self.folder / repository
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository or not root.is_dir():
            return None
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def sha256(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._hashes:
            with path.open("rb") as stream:
                self._hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[key]

    def commit(self, files: dict[str, Path]) -> str:
        """The hash of names and contents, of 40 digits as Git's."""
        text = "".join(f"{name} {self.sha256(path)}\n" for name, path in files.items())
        return hashlib.sha1(text.encode()).hexdigest()

    def stored(self, sha256: str) -> Path | None:
        """A large file by its hash."""
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size)
        return next((path for path in paths if self.sha256(path) == sha256), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 2  # seconds that a connection may be idle, so that its thread ends soon after the tests
    server_hub: StandInHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Do not log."""

    def _answer(self) -> None:
        hub, parts = self.server_hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        try:
            if found := _API.fullmatch(path):
                self._api(found[1], found[2] or "", found[3] or "main", query)
            elif found := _RESOLVE.fullmatch(path):
                self._resolve(found[1], found[2], found[3])
            elif found := _STORED.fullmatch(path):
                self._stored(found[1])
            else:
                self._error(404, "")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _api(self, repository: str, kind: str, revision: str, query: dict[str, list[str]]) -> None:
        hub = self.server_hub
        if hub.faults.api_statuses:
            self._error(hub.faults.api_statuses.pop(0), "")
            return
        files = self._files(repository, revision, is_api=True)
        if files is None:
            return
        if kind == "tree":
            self._json([{"type": "file", "path": name, **self._blob(path)} for name, path in files.items()])
            return
        has_blobs = "blobs" in query
        siblings = [{"rfilename": name, **(self._sibling(path) if has_blobs else {})} for name, path in files.items()]
        self._json(
            {
                "_id": "1",
                "id": repository,
                "modelId": repository,
                "sha": hub.commit(files),
                "private": False,
                "gated": "manual" if repository in hub.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["gguf"],
                "siblings": siblings,
            }
        )

    def _blob(self, path: Path) -> dict[str, Any]:
        size, oid = path.stat().st_size, hashlib.sha1(path.read_bytes()[:_LARGE]).hexdigest()
        lfs = {"oid": self.server_hub.sha256(path), "size": size, "pointerSize": 134}
        return {"size": size, "oid": oid, **({"lfs": lfs} if _is_large(path) else {})}

    def _sibling(self, path: Path) -> dict[str, Any]:
        blob = self._blob(path)
        lfs = {"sha256": blob["lfs"]["oid"], "size": blob["size"], "pointerSize": 134} if "lfs" in blob else None
        return {"size": blob["size"], "blobId": blob["oid"], **({"lfs": lfs} if lfs else {})}

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        hub = self.server_hub
        files = self._files(repository, revision)
        if files is None:
            return
        headers = {"X-Repo-Commit": hub.commit(files)}
        path = files.get(name)
        if path is None:
            self._error(404, "EntryNotFound", headers)
            return
        if not _is_large(path):
            self._content(path, headers | {"ETag": f'"{self._blob(path)["oid"]}"'})
            return
        sha256 = hub.sha256(path)
        headers |= {
            "X-Linked-Size": str(path.stat().st_size),
            "X-Linked-Etag": f'"{sha256}"',
            "Location": hub.faults.redirect_to or f"{hub.store}/stored/{sha256}",
        }
        if hub.is_xet:
            route = f"{hub.endpoint}/api/models/{quote(repository)}/xet-read-token/{headers['X-Repo-Commit']}"
            headers |= {"X-Xet-Hash": sha256, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}
        self._send(302, b"", headers)

    def _stored(self, sha256: str) -> None:
        hub = self.server_hub
        if self.headers.get("Authorization"):
            hub.leaks.append(self.path)
            self._error(400, "")
            return
        path = hub.stored(sha256)
        if path is None:
            self._error(404, "")
        else:
            self._content(path, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _content(self, path: Path, headers: dict[str, str]) -> None:
        faults = self.server_hub.faults
        if self.command == "GET" and faults.statuses:
            self._error(faults.statuses.pop(0), "")
            return
        content = path.read_bytes()
        start, status = 0, 200
        if (asked := _RANGE.fullmatch(self.headers.get("Range", ""))) and not faults.ignores_range:
            start = int(asked[1])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            end = min(int(asked[2]) if asked[2] else len(content) - 1, len(content) - 1)
            headers |= {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            content, status = content[start : end + 1], 206
        if self.command == "GET" and faults.wrong_bytes:
            faults.wrong_bytes -= 1
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        cut = faults.cut_after.pop(0) if self.command == "GET" and faults.cut_after else None
        self._send(status, content, headers, cut=cut)

    def _files(self, repository: str, revision: str, *, is_api: bool = False) -> dict[str, Path] | None:
        """The files of a revision, or None after the answer that there is none, or that it is not for this caller."""
        hub, token = self.server_hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and hub.token and token != hub.token:
            self._error(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        files = hub.files(repository)
        if files is None:
            self._error(404 if token else 401, "RepoNotFound", {"X-Error-Message": "Repository not found"})
            return None
        if revision not in ("main", hub.commit(files)):
            self._error(404, "RevisionNotFound", {"X-Error-Message": f"Invalid rev id: {revision}"})
            return None
        if repository in hub.gated and not is_api and (not token or token != hub.token):
            message = f"Access to model {repository} is restricted."
            self._error(403 if token else 401, "GatedRepo", {"X-Error-Message": message})
            return None
        return files

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Code": code} if code else {}
        if status in (429, 503):
            more["Retry-After"] = "0"
        self._send(status, b'{"error":"refused"}', {**more, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _is_large(path: Path) -> bool:
    return path.suffix == ".gguf" or path.stat().st_size >= _LARGE


def main() -> None:
    """Serve a folder until the process is ended, and print the variable that points the client to it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has a folder org/repo for each repository")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/REPO", help="needs --token")
    parser.add_argument("--token", default="", help="the only token that is valid")
    parser.add_argument("--cut", type=int, default=0, metavar="BYTES", help="cut the first download after that many")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="answer the first N downloads with 503")
    parser.add_argument("--xet", action="store_true", help="announce the files as stored in Xet")
    given = parser.parse_args()
    hub = StandInHub(given.folder, port=given.port, gated=frozenset(given.gated), token=given.token, is_xet=given.xet)
    hub.faults = Faults(cut_after=[given.cut] if given.cut else [], statuses=[503] * given.busy)
    print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)  # noqa: T201
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
