"""The files of the web page: served from memory under a strict policy, small, complete, and free of what the policy forbids."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from api.http.errors import install_error_handlers
from api.routes.web import FOLDER, web_router

MOST_BYTES = 150_000  # of all files together, compressed


@pytest.fixture
async def http() -> AsyncIterator[AsyncClient]:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(web_router())
    async with AsyncClient(transport=ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_the_page_allows_only_its_own_files(http: AsyncClient) -> None:
    page = await http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy


async def test_a_file_is_sent_again_only_if_it_has_changed(http: AsyncClient) -> None:
    first = await http.get("/web/app.js")
    assert first.headers["content-encoding"] == "gzip"
    assert first.content == (FOLDER / "app.js").read_bytes()
    again = await http.get("/web/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = await http.get("/web/app.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "path", ["../pyproject.toml", "%2e%2e/pyproject.toml", "", "views", "vendor/htm-3.1.1.LICENSE"]
)
async def test_nothing_else_is_served(http: AsyncClient, path: str) -> None:
    assert (await http.get(f"/web/{path}")).status_code == 404


def test_every_import_of_a_module_is_a_file() -> None:
    for path in FOLDER.rglob("*.js"):
        for name in re.findall(r"""\b(?:from|import)\s*\(?\s*["']([^"']+)["']""", path.read_text()):
            assert name.startswith("."), f"{path.name} imports {name!r}, which no browser can resolve"
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"


def test_the_page_has_no_inline_code_and_no_address_elsewhere() -> None:
    index = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", index)
    for path in (*FOLDER.glob("*.*"), *FOLDER.glob("lib/*.js"), *FOLDER.glob("views/*.js")):
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"""(?:src|href|import|url)\s*[=(]\s*["']?(?:https?:)?//""", text), path


def test_all_files_together_are_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) <= MOST_BYTES


def test_vendored_modules_have_their_licences_beside_them() -> None:
    from tools.vendor_web import FILES, VERSIONS

    vendored = {path.name for path in (FOLDER / "vendor").iterdir()}
    licences = {f"{name.removeprefix('@').replace('/', '-')}-{version}.LICENSE" for name, version in VERSIONS.items()}
    assert vendored == {*FILES, *licences}
