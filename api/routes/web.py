"""The web page: `/` and the files of `web/` that it loads. It is a client of the public API, so nothing here needs a key."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from core.errors import not_found

FOLDER: Final = Path(__file__).resolve().parent.parent.parent / "web"
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (  # of content security: only this server's own scripts, styles, images and answers
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser asks each time whether the file has changed, so an upgrade shows at once
    "vary": "accept-encoding",
}
_MIN_GZIP_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the page in memory, with its compressed form if that is smaller."""

    media_type: str
    content: bytes
    compressed: bytes | None
    etag: str


def web_router(folder: Path = FOLDER) -> APIRouter:
    """Routes of the page; its files are read once, so a request reaches no path of the disk."""
    router = APIRouter(include_in_schema=False)
    files = _read_files(folder)

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page."""
        return _respond(request, files["index.html"])

    @router.get("/web/{path:path}")
    async def file(path: str, request: Request) -> Response:
        """A file of the page."""
        if path not in files:
            raise not_found(f"There is no file '{path[:96]}' of the web page.", code="unknown_url")
        return _respond(request, files[path])

    return router


def _read_files(folder: Path) -> Mapping[str, _File]:
    paths = (path for path in folder.rglob("*") if path.suffix in _MEDIA_TYPES and path.is_file())
    return {path.relative_to(folder).as_posix(): _read_file(path) for path in paths}


def _read_file(path: Path) -> _File:
    content = path.read_bytes()
    compressed = gzip.compress(content, mtime=0) if len(content) >= _MIN_GZIP_BYTES else None
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(_MEDIA_TYPES[path.suffix], content, compressed, etag)


def _respond(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content = file.compressed
        headers["content-encoding"] = "gzip"
    return Response(content, headers=headers, media_type=file.media_type)
