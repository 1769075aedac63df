"""The whole app in process, without its services: unknown paths, methods, cross-origin requests, pages for people."""

from __future__ import annotations

import re
from functools import cache

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from api.app import create_app
from core.errors import ConfigError
from core.settings import Settings, load_settings
from tests.support.check import check_problem

CHAT = "/v1/chat/completions"
PAGE = "https://app.example"


@cache
def app_of(origins: str, *, web: bool = True) -> FastAPI:
    return create_app(Settings(cors_origins=origins, web=web))


async def ask(method: str, path: str, *, origins: str = "", **headers: str) -> httpx2.Response:
    return await ask_app(app_of(origins), method, path, **headers)


async def ask_app(app: FastAPI, method: str, path: str, **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(
            method, path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/v1/chat/completions", CHAT),
        ("POST", "//v1/chat/completions", CHAT),
        ("POST", "/v1//chat//completions", CHAT),
        ("POST", "/v1/chat/completions/", CHAT),
        ("POST", "/chat/completions", CHAT),
        ("POST", "/V1/Chat/Completions", CHAT),
        ("POST", "/openai/v1/chat/completions", CHAT),
        ("POST", "/api/chat/completions", CHAT),
        ("POST", "/v1/chat/completion", CHAT),
        ("GET", "/models", "/v1/models"),
        ("GET", "/v1/files/file-1/contents", None),
        ("GET", "/v1/healthz", "/healthz"),
        ("GET", "/favicon.ico", None),
        ("GET", "/" + "x" * 5000, None),
    ],
)
async def test_an_unknown_path_is_named_with_its_method_and_the_near_miss(
    method: str, path: str, meant: str | None
) -> None:
    error = check_problem(await ask(method, f"http://localhost{path}"), 404, "unknown_url")
    assert f"Invalid URL ({method} {path[:128]})" in error["message"]
    assert (f"Did you mean {meant}?" in error["message"]) == (meant is not None)
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("POST", "/v1/files/file-1", "DELETE, GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_names_all_right_ones(method: str, path: str, allowed: str) -> None:
    response = await ask(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert f"{method} {path} is not allowed" in check_problem(response, 405, "method_not_allowed")["message"]


async def test_every_get_has_a_head() -> None:
    for route in iter_route_contexts(app_of("").routes):
        if "GET" in (route.methods or ()):
            response = await ask("DELETEX", re.sub(r"{[^}]*}", "x", str(route.path)))
            assert "HEAD" in response.headers["allow"], route.path
    for path in ("/", "/docs", "/healthz", "/version", "/openapi.json"):
        response = await ask("HEAD", path)
        assert (response.status_code, response.content) == (200, b"")
        assert int(response.headers["content-length"]) > 0


async def test_pages_of_listed_origins_may_call_without_a_key_for_the_preflight() -> None:
    wanted = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    response = await ask("OPTIONS", CHAT, origins=f"{PAGE}/, http://localhost:3000", origin=PAGE, **wanted)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]
    refused = await ask("OPTIONS", CHAT, origins=PAGE, origin="https://evil.example", **wanted)
    assert "access-control-allow-origin" not in refused.headers
    off = await ask("OPTIONS", CHAT, origin=PAGE, **wanted)
    assert off.status_code == 405
    assert "access-control-allow-origin" not in off.headers


@pytest.mark.parametrize("origins", [PAGE, "*"])
@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/readyz"], ids=["answer", "404", "500"])
async def test_a_page_may_read_answers_and_errors_and_their_request_id(origins: str, path: str) -> None:
    response = await ask("GET", path, origins=origins, origin=PAGE)
    assert response.headers["access-control-allow-origin"] == origins
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("setting", ["app.example", "https://app.example/path", "https://*.example", "http//x"])
def test_an_origin_that_no_browser_sends_is_a_wrong_setting(setting: str) -> None:
    with pytest.raises(ConfigError, match="scheme://host"):
        load_settings(cors_origins=setting)


async def test_the_root_names_the_addresses_to_begin_with_where_the_page_is_off() -> None:
    addresses = (await ask_app(app_of("", web=False), "GET", "/")).json()
    assert addresses["version"] == (await ask("GET", "/version")).json()["version"]
    known = {route.path for route in iter_route_contexts(app_of("").routes)}
    assert {addresses[name] for name in ("docs", "openapi", "health", "models")} <= known


async def test_the_docs_need_no_other_server() -> None:
    page = await ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self';" in page.headers["content-security-policy"]
    found = re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page.text)
    assert len(found) == 3
    for name in found:
        assert "//" not in name
        file = await ask("GET", f"/{name}")
        assert file.status_code == 200
        assert len(file.content) > 50
    bundle = await ask("GET", "/docs/swagger-ui-bundle.js")
    assert b"SwaggerUIBundle" in bundle.content, "decompressed by the client"
    check_problem(await ask("GET", "/docs/../app.py"), 404, "unknown_url")
    check_problem(await ask("GET", "/docs/README.md"), 404, "unknown_url")
