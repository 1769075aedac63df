"""Pages for programmers: `/` where the web page is off, which names the other addresses, and `/docs`, which shows
`/openapi.json` without any other server."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from core.errors import not_found
from core.version import VERSION

router = APIRouter(include_in_schema=False)
addresses_router = APIRouter(include_in_schema=False)

_FOLDER: Final = Path(__file__).resolve().parent.parent / "swagger_ui"
_FILES: Final = {  # name -> file and media type
    "start.js": ("start.js", "text/javascript"),
    "swagger-ui-bundle.js": ("swagger-ui-bundle.js.gz", "text/javascript"),
    "swagger-ui.css": ("swagger-ui.css.gz", "text/css"),
}
_POLICY: Final = (  # of content security: the page runs its own scripts only, and calls this server only
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NOSNIFF: Final = {"x-content-type-options": "nosniff"}


@addresses_router.get("/")
async def root() -> JSONResponse:
    """The addresses to begin with."""
    return JSONResponse(
        {
            "name": "Millrace",
            "version": VERSION,
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/health",
            "models": "/v1/models",
        }
    )


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI."""
    headers = {**_NOSNIFF, "content-security-policy": _POLICY}
    return Response((_FOLDER / "index.html").read_bytes(), headers=headers, media_type="text/html")


@router.get("/docs/{name}")
async def docs_file(name: str) -> Response:
    """A file of Swagger UI."""
    if name not in _FILES:
        raise not_found(f"There is no file '{name[:96]}' of the page /docs.", code="unknown_url")
    file, media_type = _FILES[name]
    headers = {**_NOSNIFF, "cache-control": "public, max-age=3600"}
    if file.endswith(".gz"):
        headers["content-encoding"] = "gzip"  # every browser reads it
    return Response((_FOLDER / file).read_bytes(), headers=headers, media_type=media_type)
