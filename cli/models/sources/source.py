"""Sources of a model: a file or folder of this machine, a web address, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cli.errors import CommandFailed, ExitCode

_REPOSITORY: Final = r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_HUB: Final = re.compile(
    rf"{_REPOSITORY}(?::(?P<quant>[\w.-]+)|/(?P<file>[^@:]+))?(?:@(?P<revision>[^@:\s]+)(?::(?P<late_quant>[\w.-]+))?)?"
)
_PAGE: Final = re.compile(rf"/{_REPOSITORY}(?:/(?:blob|resolve|raw|tree)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?/?")
_HUB_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_FORMS: Final = "a GGUF file, a folder, https://…/NAME.gguf, or hf:ORG/REPO[:QUANT | /FILE.gguf][@REVISION]"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file, or a folder and perhaps the quantisation that was named."""

    path: Path
    quant: str = ""


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A GGUF file on the web."""

    url: str

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository, with the quantisation or the file that was named."""

    repository: str
    quant: str = ""
    file: str = ""
    revision: str = "main"


Source = LocalSource | UrlSource | HubSource


def shown_source(text: str) -> str:
    """What a user wrote, without the credentials that an address may have."""
    if text.partition(":")[0].lower() not in ("http", "https"):
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def parse_source(text: str) -> Source:
    """Parse what a user wrote. Raises CommandFailed, which lists the forms."""
    scheme = text.partition(":")[0].lower()
    if scheme in ("http", "https"):
        return _web(text)
    if scheme in ("hf", "huggingface"):
        return _hub(text.partition(":")[2].removeprefix("//"), text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise CommandFailed(f"{text} is no address that can be downloaded: use http, https or hf:.", ExitCode.USAGE)
    path = Path(text).expanduser()
    if text.strip() and path.exists():
        return LocalSource(path)
    folder, _, quant = text.rpartition(":")
    if folder and Path(folder).expanduser().is_dir():
        return LocalSource(Path(folder).expanduser(), quant)
    host, _, rest = text.partition("/")
    if host in _HUB_HOSTS:
        return _hub(rest, text)
    hint = (
        f" For the repository on the hub, write hf:{text}"
        if _HUB.fullmatch(text) and not text.endswith(".gguf")
        else ""
    )
    raise CommandFailed(f"There is no file or folder {text}.{hint or f' WHAT is {_FORMS}'}.", ExitCode.USAGE)


def _web(text: str) -> Source:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise CommandFailed(f"{text} is no valid address: {error}.", ExitCode.USAGE) from None
    if not host:
        raise CommandFailed(f"{text} is no valid address: it has no host.", ExitCode.USAGE)
    if host in _HUB_HOSTS and (found := _PAGE.fullmatch(unquote(parts.path))):
        given = {name: value for name, value in found.groupdict().items() if value}
        if not given.get("file", ".gguf").lower().endswith(".gguf"):  # the page of a folder
            del given["file"]
        return HubSource(**given)
    if not UrlSource(text).file_name.lower().endswith(".gguf"):
        raise CommandFailed(f"{text} is no GGUF file: the address must end in .gguf.", ExitCode.USAGE)
    return UrlSource(text)


def _hub(text: str, whole: str) -> HubSource:
    found = _HUB.fullmatch(text)
    if found is None or ".." in text:
        raise CommandFailed(
            f"{whole} is no repository: write hf:ORG/REPO[:QUANT | /FILE.gguf][@REVISION].", ExitCode.USAGE
        )
    given = {name.removeprefix("late_"): value for name, value in found.groupdict().items() if value}
    if not given.get("file", ".gguf").lower().endswith(".gguf"):
        raise CommandFailed(f"{given['file']} is no GGUF file.", ExitCode.USAGE)
    return HubSource(**given)
