"""Repositories of the Hugging Face Hub: the files that they list, and the addresses and credentials to download them.

The library `huggingface-hub` (the extra `hub`) finds the token, the endpoint and the cache, and asks the hub. The bytes are
fetched by `cli.models.sources.download`: the library keeps no part of a file when a command ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cli.errors import CommandFailed
from cli.models.sources.download import RemoteFile, Sleep
from cli.models.sources.quants import NamedFile
from cli.models.sources.source import HubSource
from core.models.hf_folder import FOLDER_FILES, INSTALL, missing_packages

if TYPE_CHECKING:
    import httpx2

_TRIES: Final = 4
_TIMEOUT_SECONDS: Final = 30.0
_BUSY: Final = (429, 500, 502, 503, 504)
_INSTALL: Final = (
    f"Models of the hub need the package huggingface-hub: {sys.executable} -m pip install 'millrace[hub]'."
)
_CONVERT: Final = (
    "Look for a repository with GGUF files of it, or download it and convert it: "
    "`python convert_hf_to_gguf.py FOLDER` of llama.cpp."
)


class Hub:
    """The hub at HF_ENDPOINT, with HF_TOKEN. Raises CommandFailed with one sentence."""

    def __init__(self, sleep: Sleep | None = None) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError:
            raise CommandFailed(_INSTALL) from None
        self._library: Any = huggingface_hub
        self._sleep = sleep or time.sleep

    @property
    def client(self) -> httpx2.Client:
        """The client of the library, with the proxies and certificates that are set for it."""
        found: httpx2.Client = self._library.get_session()
        return found

    @property
    def is_offline(self) -> bool:
        """Does HF_HUB_OFFLINE forbid requests?"""
        return bool(self._library.constants.is_offline_mode())

    def files(self, source: HubSource) -> tuple[str, list[NamedFile]]:
        """The commit of a revision, and its files. Offline, those in the library's cache."""
        if self.is_offline:
            return self._cached(source)
        info = self._asked(
            source,
            lambda: self._library.HfApi().model_info(
                source.repository, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
            ),
        )
        siblings = info.siblings or []
        files = [
            NamedFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs is not None else None)
            for each in siblings
        ]
        return info.sha, files

    def snapshot(self, source: HubSource) -> Path:
        """Download a model in the format of Hugging Face to the cache of the library, and return its folder."""
        return Path(
            self._asked(
                source,
                lambda: self._library.snapshot_download(
                    source.repository, revision=source.revision, allow_patterns=list(FOLDER_FILES)
                ),
            )
        )

    def remote(self, source: HubSource, commit: str, file: NamedFile) -> RemoteFile:
        """The address of a file, with the headers of this user."""
        return RemoteFile(
            url=self._library.hf_hub_url(source.repository, file.name, revision=commit),
            name=file.name.rpartition("/")[2],
            headers=self._library.utils.build_hf_headers(),
            size=file.size or None,
            sha256=file.sha256,
        )

    def cached(self, source: HubSource, commit: str, file: NamedFile) -> Path | None:
        """The file in the library's cache, if it is there."""
        found = self._library.try_to_load_from_cache(source.repository, file.name, revision=commit)
        return Path(found) if isinstance(found, str) else None

    def check_access(self, source: HubSource, commit: str, file: NamedFile) -> None:
        """Raise CommandFailed if this user may not download the file."""
        url = self._library.hf_hub_url(source.repository, file.name, revision=commit)
        self._asked(source, lambda: self._library.get_hf_file_metadata(url, timeout=_TIMEOUT_SECONDS))

    def _cached(self, source: HubSource) -> tuple[str, list[NamedFile]]:
        try:
            folder = Path(
                self._library.snapshot_download(source.repository, revision=source.revision, local_files_only=True)
            )
        except (OSError, ValueError):
            raise CommandFailed(
                f"{source.repository} is not in the cache of huggingface-hub, and HF_HUB_OFFLINE forbids to download it."
            ) from None
        files = [path for path in folder.rglob("*") if path.is_file()]
        return folder.name, [NamedFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]

    def _asked(self, source: HubSource, ask: Callable[[], Any]) -> Any:  # Any: the library's own types
        """The answer to a question, after some waits for a hub that is busy."""
        import httpx2

        for left in reversed(range(_TRIES)):
            try:
                return ask()
            except self._library.errors.HfHubHTTPError as error:
                if error.response.status_code not in _BUSY or not left:
                    raise self._refusal(source, error) from None
                after = error.response.headers.get("Retry-After", "")
                self._sleep(min(float(after) if after.isdigit() else 2.0 ** (_TRIES - left), 60.0))
            except httpx2.TransportError as error:
                host = urlsplit(self._library.constants.ENDPOINT).netloc
                raise CommandFailed(
                    f"The hub at {host} cannot be reached ({type(error).__name__}). Check the network, the proxy and HF_ENDPOINT."
                ) from None
            except self._library.errors.HFValidationError as error:
                raise CommandFailed(f"{source.repository} is no name of a repository: {error}") from None
        raise AssertionError("the last try ends the loop")

    def _refusal(self, source: HubSource, error: Any) -> CommandFailed:  # Any: HfHubHTTPError
        errors, repository = self._library.errors, source.repository
        page = f"{self._library.constants.ENDPOINT}/{repository}"
        status = error.response.status_code
        if "Invalid credentials" in error.response.headers.get("X-Error-Message", ""):
            return CommandFailed("The hub does not accept the token: check HF_TOKEN, or log in with `hf auth login`.")
        if isinstance(error, errors.GatedRepoError):
            return CommandFailed(
                f"{repository} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CommandFailed(f"{repository} has no revision {source.revision}.")
        if isinstance(error, errors.RepositoryNotFoundError):
            return CommandFailed(
                f"There is no repository {repository} on the hub, or it is private: check the name, or set HF_TOKEN."
            )
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return CommandFailed(f"{repository} has no file {source.file}.")
        if status == 403:
            return CommandFailed(f"The hub forbids access to {repository}: the token lacks a permission, see {page}.")
        return CommandFailed(f"The hub answers {status} about {repository}. Try again later.")


def check_has_gguf(names: list[str], where: str) -> None:
    """Raise CommandFailed where no file is a GGUF, with advice if there are weights in another format."""
    if any(name.lower().endswith(".gguf") for name in names):
        return
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        as_it_is = f" To serve it as it is: {INSTALL}" if missing_packages() else ""
        raise CommandFailed(f"{where} has safetensors and no GGUF file. {_CONVERT}{as_it_is}")
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise CommandFailed(f"{where} has weights of PyTorch and no GGUF file. {_CONVERT}")
    raise CommandFailed(f"{where} has no GGUF file.")
