"""Findings about server upstreams (backend openai): are they there, do they take the key, do they have the model?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from cli.doctor.findings import Finding, Level
from core.field_errors import nearest, plain
from core.models.fields.upstream_headers import NoSecret, read_secrets, request_headers
from core.models.model_files import ModelConfig

_TIMEOUT: Final = httpx2.Timeout(5)
_AT_A_TIME: Final = 16
_MAX_BYTES: Final = 4 << 20
_MAX_SHOWN: Final = 10


def upstreams(models: Sequence[ModelConfig], environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Check the servers of these models, all at the same time."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = pool.map(lambda model: _of_model(model, environment), models)
        return [finding for findings in found for finding in findings]


def _of_model(model: ModelConfig, environment: Mapping[str, str]) -> list[Finding]:
    name = f"model {model.name}"
    try:
        secrets = read_secrets(model.api_key_env, model.headers, environment)
    except NoSecret as error:
        advice = "Set it where the worker is started, and here, then run doctor again."
        return [Finding(Level.BAD, name, str(error), advice)]
    if model.command:
        return [_of_command(name, model.command[0])]
    headers = request_headers(model.api_key_env, model.headers, secrets)
    return [_of_server(name, url, str(model.upstream_model), headers) for url in model.base_url]


def _of_command(name: str, program: str) -> Finding:
    if path := shutil.which(program):
        return Finding(Level.OK, name, f"a server that {path} starts")
    advice = "Install it, or write its whole path in `command`."
    return Finding(Level.BAD, name, f"there is no program {plain(program)}", advice)


def _of_server(name: str, url: str, wanted: str, headers: Mapping[str, str]) -> Finding:
    """Ask a server for its models. No message has a header, or words of the server that may repeat one."""
    try:
        with httpx2.Client(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as client:
            response = client.get(f"{url}/models", headers=dict(headers))
    except httpx2.TimeoutException:
        return _unreachable(name, url, "does not answer within 5 s")
    except httpx2.HTTPError as error:
        return _unreachable(name, url, f"cannot be reached: {type(error).__name__}")
    if response.status_code in (401, 403):
        advice = "Check the key: `api_key_env` and `headers` of the model file name its variables."
        if "Authorization" not in headers:
            advice = "Name the variable of its key in `api_key_env` of the model file."
        return Finding(Level.BAD, name, f"{url} refuses the key (status {response.status_code})", advice)
    if response.is_redirect:
        advice = "Redirects are not followed, since they would get the key: write the last address in base_url."
        return Finding(Level.BAD, name, f"{url} redirects to another address", advice)
    if not response.is_success:
        advice = "Some servers have no list of models; else check base_url, which mostly ends with /v1."
        return Finding(Level.WARNING, name, f"{url}/models answers with status {response.status_code}", advice)
    return _of_list(name, url, wanted, response, headers)


def _of_list(name: str, url: str, wanted: str, response: httpx2.Response, headers: Mapping[str, str]) -> Finding:
    served = _names(response)
    if served is None:
        advice = "Check base_url, which mostly ends with /v1."
        return Finding(Level.WARNING, name, f"{url}/models does not answer as OpenAI's API does", advice)
    if wanted not in served:
        listed = ", ".join(served[:_MAX_SHOWN]) + (" …" if len(served) > _MAX_SHOWN else "")
        message = f"{url} has no model {wanted!r}{nearest(wanted, served) or '.'} It has {listed or 'none'}"
        return Finding(Level.WARNING, name, message, "Write the server's name as `model` of the model file.")
    if "Authorization" in headers and _is_open(url):
        advice = "Everyone on the way can read the key: use https, or an address of your own network."
        return Finding(Level.WARNING, name, f"{url} gets its key without encryption", advice)
    return Finding(Level.OK, name, f"{wanted} at {url}")


def _unreachable(name: str, url: str, problem: str) -> Finding:
    advice = "Start the server, or correct base_url. Its batch lines wait meanwhile, and chats get a 503."
    return Finding(Level.WARNING, name, f"{url} {problem}", advice)


def _names(response: httpx2.Response) -> list[str] | None:
    """The ids of the models that a server lists; None where the body is no such list."""
    if len(response.content) > _MAX_BYTES:
        return None
    try:
        body: Any = response.json()  # Any: JSON of another server
        return [plain(each["id"]) for each in body["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def _is_open(url: str) -> bool:
    """Does a request to this address cross foreign networks without encryption?"""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return False
    try:
        return ip_address(parts.hostname or "").is_global
    except ValueError:  # a name: one without a dot is of this machine or its network
        return "." in (parts.hostname or "") and not str(parts.hostname).endswith((".local", ".internal", ".lan"))
