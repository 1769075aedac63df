"""The weights of a new model: found on this machine, or fetched into the models folder.

Fetched files go to a hidden folder first. They move to `models/NAME/` when all are there and can be served, so that no server
sees a part of a model.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from cli.errors import CommandFailed, ExitCode
from cli.models.facts import ModelFacts, read_facts, read_folder_facts
from cli.models.sources.download import Downloader, Progress, RemoteFile
from cli.models.sources.hub import Hub, check_has_gguf
from cli.models.sources.quants import Choice, NamedFile, Variant, check_parts, choose, listing, variants, without_quant
from cli.models.sources.source import HubSource, LocalSource, Source, UrlSource
from core.models.gguf.gguf_header import GgufError, is_further_part
from core.models.hf_folder import HUB_PREFIX, missing_packages

_STAGING: Final = ".downloads"
_PART: Final = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE | re.ASCII)
_USED_SHARE: Final = 0.8  # of the device's memory, for the weights of a quantisation that is chosen
Remark = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A model that can be had: a name for it, and how to get its files in a folder, or where they lie.

    With `is_folder` it is a folder in the format of Hugging Face, in the hub's cache if it has a `hub_name`.
    """

    name: str
    fetch: Callable[[Path], list[Path]]
    is_local: bool = False
    key: str = ""
    is_folder: bool = False
    hub_name: str = ""


class WeightsFinder:
    """Finds the model of a source, and puts its files in place."""

    def __init__(self, models: Path, progress: Progress, remark: Remark, fitting_bytes: int) -> None:
        self._models = models
        self._progress = progress
        self._remark = remark
        self._fitting_bytes = int(fitting_bytes * _USED_SHARE)

    def find(self, source: Source) -> FoundWeights:
        """Choose the files of a source, before anything large is fetched."""
        match source:
            case LocalSource():
                return self._local(source)
            case UrlSource():
                return self._web(source)
            case HubSource():
                return self._hub(source)

    def staged(self, found: FoundWeights) -> list[Path]:
        """Fetch the files into the hidden folder; those of this machine stay where they lie."""
        return found.fetch(self._staging(found))

    def facts(self, found: FoundWeights, paths: list[Path]) -> ModelFacts:
        """Read the facts of fetched files; delete those that cannot be served."""
        if found.is_folder:
            return read_folder_facts(paths[0])
        try:
            return read_facts(paths[0])
        except (GgufError, CommandFailed):
            if not found.is_local:
                shutil.rmtree(self._staging(found), ignore_errors=True)
            raise

    def place(self, found: FoundWeights, paths: list[Path], folder_name: str, *, copy: bool) -> str:
        """Move or copy the files to the model's folder, and return the path of the first for its YAML."""
        if found.hub_name:
            return found.hub_name
        if found.is_local and not copy:
            return self._reference(paths[0])
        if found.is_folder:
            shutil.copytree(paths[0], self._models / folder_name, dirs_exist_ok=True)
            return folder_name
        folder = self._models / folder_name
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            target = folder / path.name
            if found.is_local:
                _copy(path, target)
            else:
                path.replace(target)
        if not found.is_local:
            shutil.rmtree(self._staging(found), ignore_errors=True)
            with_others = self._models / _STAGING
            if with_others.is_dir() and not any(with_others.iterdir()):
                with_others.rmdir()
        return f"{folder_name}/{paths[0].name}"

    def _staging(self, found: FoundWeights) -> Path:
        return self._models / _STAGING / hashlib.sha256(found.key.encode()).hexdigest()[:16]

    def _reference(self, path: Path) -> str:
        path = path.absolute()  # links are kept: the user may point them elsewhere
        folder = self._models.absolute()
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)

    def _local(self, source: LocalSource) -> FoundWeights:
        if source.path.is_file():
            if is_further_part(source.path.name):
                raise CommandFailed(
                    f"{source.path.name} is a part of a split model. Name its first part.", ExitCode.USAGE
                )
            paths = [source.path, *_other_parts(source.path)]
            return FoundWeights(without_quant(source.path.name), lambda _: paths, is_local=True)
        if not source.path.is_dir():
            raise CommandFailed(f"{source.path} is neither a file nor a folder.", ExitCode.USAGE)
        present = {
            path.relative_to(source.path).as_posix(): path
            for pattern in ("*", "*/*")
            for path in source.path.glob(pattern)
            if path.is_file()
        }
        if not source.quant and _is_for_transformers(list(present)):
            return FoundWeights(source.path.resolve().name, lambda _: [source.path], is_local=True, is_folder=True)
        check_has_gguf(list(present), str(source.path))
        files = [NamedFile(name, path.stat().st_size) for name, path in present.items()]
        chosen = self._choose(files, source.quant, str(source.path))
        paths = [present[file.name] for file in chosen.files]
        return FoundWeights(without_quant(chosen.first), lambda _: paths, is_local=True)

    def _web(self, source: UrlSource) -> FoundWeights:
        urls = [source.url]
        if found := _PART.search(source.url.partition("?")[0]):
            urls = [
                source.url.replace(found[0], f"-{number:05}-of-{found[1]}.gguf")
                for number in range(1, int(found[1]) + 1)
            ]
        remote = [RemoteFile(url=url, name=_safe_name(UrlSource(url).file_name)) for url in urls]

        def fetch(folder: Path) -> list[Path]:
            with httpx2.Client() as client:
                downloader = Downloader(client, self._progress)
                return [downloader.fetch(file, folder) for file in remote]

        return FoundWeights(without_quant(remote[0].name), fetch, key=urls[0])

    def _hub(self, source: HubSource) -> FoundWeights:
        hub = Hub()
        commit, files = hub.files(source)
        names = [file.name for file in files]
        if not (source.quant or source.file) and _is_for_transformers(names):
            revision = "" if source.revision == "main" else f"@{source.revision}"
            return FoundWeights(
                source.repository.rpartition("/")[2],
                lambda _: [hub.snapshot(source)],
                is_folder=True,
                hub_name=f"{HUB_PREFIX}{source.repository}{revision}",
            )
        check_has_gguf(names, f"{source.repository} on the hub")
        chosen = self._of_hub(source, files)
        name = source.repository.rpartition("/")[2]
        name = re.sub(r"[-_.]gguf$", "", name, flags=re.IGNORECASE) if not source.file else without_quant(source.file)

        def fetch(folder: Path) -> list[Path]:
            downloader = Downloader(hub.client, self._progress)
            return [self._from_hub(hub, downloader, source, commit, file, folder) for file in chosen.files]

        return FoundWeights(name, fetch, key=f"{source.repository}@{commit}/{chosen.first}")

    def _of_hub(self, source: HubSource, files: list[NamedFile]) -> Variant:
        if not source.file:
            return self._choose(files, source.quant, source.repository)
        for variant in variants(files):
            if source.file in [file.name for file in variant.files]:
                check_parts(variant)
                return variant
        named = [file for file in files if file.name == source.file]
        if named:
            return Variant("", (named[0],))
        names = ", ".join(sorted(file.name for file in files if file.name.lower().endswith(".gguf")))
        raise CommandFailed(f"{source.repository} has no file {source.file}. It has {names}.", ExitCode.USAGE)

    def _from_hub(
        self, hub: Hub, downloader: Downloader, source: HubSource, commit: str, file: NamedFile, folder: Path
    ) -> Path:
        path = folder / file.name.rpartition("/")[2]
        if path.is_file():
            return path
        if cached := hub.cached(source, commit, file):
            folder.mkdir(parents=True, exist_ok=True)
            _link_or_copy(cached, path)
            return path
        hub.check_access(source, commit, file)
        return downloader.fetch(hub.remote(source, commit, file), folder)

    def _choose(self, files: list[NamedFile], quant: str, where: str) -> Variant:
        found = variants(files)
        if not found:
            raise CommandFailed(f"{where} has no GGUF file of a model, only of its image or sound part.")
        choice: Choice = choose(found, quant, self._fitting_bytes, where)
        check_parts(choice.variant)
        if choice.reason:
            self._remark(f"{where} has:\n{listing(found, choice.variant)}")
            self._remark(f"Chosen: {choice.variant.quant or choice.variant.first}, since {choice.reason}.")
        return choice.variant


def _is_for_transformers(names: list[str]) -> bool:
    """Is it a model in the format of Hugging Face, with no GGUF beside it, and can it be computed here?"""
    has_gguf = any(name.lower().endswith(".gguf") for name in names)
    has_tensors = "config.json" in names and any(name.endswith(".safetensors") and "/" not in name for name in names)
    return has_tensors and not has_gguf and not missing_packages()


def _other_parts(path: Path) -> list[Path]:
    found = _PART.search(path.name)
    if found is None:
        return []
    stem, count = path.name[: found.start()], int(found[1])
    return [path.with_name(f"{stem}-{number:05}-of-{found[1]}.gguf") for number in range(2, count + 1)]


def _safe_name(name: str) -> str:
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise CommandFailed(f"The address has no usable file name: {name!r}.", ExitCode.USAGE)
    return name


def _copy(path: Path, target: Path) -> None:
    """Copy a file, which gets its name when it is whole."""
    draft = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(path, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _link_or_copy(cached: Path, path: Path) -> None:
    try:
        os.link(cached.resolve(), path)
    except OSError:
        _copy(cached, path)
