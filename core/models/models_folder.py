"""Models folder: its YAML files, and the GGUF files that none of them names, as models.

Hidden files, folders, sockets and files with other endings, such as downloads in progress, are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from core.errors import ConfigError
from core.field_errors import plain
from core.models.bare_weights import BareWeights
from core.models.fields.routing_fields import may_share
from core.models.folder_files import FolderFile, is_yaml, list_files
from core.models.model_files import ModelCatalog, ModelConfig, load_model

_REPLACE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContents:
    """The models by the name of the file that describes each, and a sentence for each file that cannot be used.

    `problems` has printable names and text only, whatever the names of the files.
    """

    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def load_models(folder: Path, *, need_weights: bool = False) -> ModelCatalog:
    """Load the models of the folder. Raises ConfigError for a YAML file that is not valid; it names file, line and key.

    Missing weights are an error only with `need_weights`: processes that do not run the model do not read them. A GGUF file
    without a YAML file that cannot be served is left out.
    """
    contents = FolderReader(folder, need_weights=need_weights).read()
    for file, problem in contents.problems.items():
        if is_yaml(file):
            raise ConfigError(problem)
    return ModelCatalog(list(contents.models.values()))


class FolderReader:
    """Reads a folder again and again; a file is parsed only when it has changed.

    A file that becomes invalid keeps the last version that was served. Of two models with one name, the one that was served
    stays; a YAML file comes before a bare GGUF file.
    """

    def __init__(self, folder: Path, *, need_weights: bool = False) -> None:
        self._folder = folder
        self._need_weights = need_weights
        self._seen: list[FolderFile] | None = None  # None: a file may change without a change of its time
        self._bare = BareWeights(folder)
        self._parsed: dict[str, _Parsed] = {}
        self._contents = FolderContents()

    def read(self) -> FolderContents:
        """Return the contents: the same object while no file has changed. Raises ConfigError when there is no folder."""
        files = self._list()
        if files == self._seen:
            return self._contents
        problems = {plain(file.name): file.problem for file in files if file.problem}
        models = self._models(files, problems)
        self._seen = files if all(file.is_settled for file in files) else None
        if models != self._contents.models or problems != self._contents.problems:
            self._contents = FolderContents(models=models, problems=problems)
        return self._contents

    def _list(self) -> list[FolderFile]:
        """List the files; one that has gone must be missing twice, since some editors put a new file in place of the old one."""
        files = list_files(self._folder)
        if self._contents.models.keys() <= {file.name for file in files}:
            return files
        time.sleep(_REPLACE_SECONDS)
        return list_files(self._folder)

    def _models(self, files: list[FolderFile], problems: dict[str, str]) -> dict[str, ModelConfig]:
        served = self._contents.models
        unreadable = {file.name: None for file in files if file.problem and not file.is_gone}
        readable = [file for file in files if not file.problem]
        self._parsed = {file.name: self._parse(file) for file in readable if file.is_yaml}
        problems |= {plain(name): parsed.problem for name, parsed in self._parsed.items() if parsed.problem}
        chosen = _Chosen(served, problems)
        parsed = unreadable | {name: each.model for name, each in self._parsed.items()}
        described = {name: model or served.get(name) for name, model in parsed.items()}
        for name in sorted(described, key=lambda name: (name not in served, name)):
            if (model := described[name]) is not None:
                chosen.add(name, model)
        named = {path for model in (*described.values(), *chosen.models.values()) if model for path in _paths(model)}
        bare = self._bare.look([file for file in readable if not file.is_yaml], named)
        problems |= {plain(each.file): each.problem for each in bare if each.problem}
        for each in sorted(bare, key=lambda each: (each.file not in served, each.file)):
            if (model := each.model or served.get(each.file)) is not None:
                chosen.add(each.file, model)
        return chosen.models

    def _parse(self, file: FolderFile) -> _Parsed:
        last = self._parsed.get(file.name)
        if last is not None and last.file == file:
            return last
        seen = file if file.is_settled else None
        try:
            return _Parsed(seen, load_model(self._folder / file.name, need_weights=self._need_weights))
        except ConfigError as error:
            return _Parsed(seen, None, plain(str(error)))


class _Chosen:
    """Models of which each has names that no other has."""

    def __init__(self, served: Mapping[str, ModelConfig], problems: dict[str, str]) -> None:
        self._served = served
        self._problems = problems
        self._owners: dict[str, list[str]] = {}
        self.models: dict[str, ModelConfig] = {}

    def add(self, file: str, model: ModelConfig) -> None:
        """Add a model, or its served version where a name of the new one is taken, or a problem."""
        taken = self._taken(model)
        if taken is not None:
            files = f"{plain(self._owners[taken][0])} and {plain(file)}"
            advice = "Rename one of them"
            if taken in model.aliases:
                advice += ", or give each a `weight` to divide the requests for an alias"
            self._problems.setdefault(plain(file), f"Two models are called {taken!r}, in {files}. {advice}.")
            if (last := self._served.get(file)) is None or self._taken(last) is not None:
                return
            model = last
        self.models[file] = model
        for name in (model.name, *model.aliases):
            self._owners.setdefault(name, []).append(file)

    def _taken(self, model: ModelConfig) -> str | None:
        """A name of the model that others have and do not share."""
        for name in (model.name, *model.aliases):
            others = [self.models[file] for file in self._owners.get(name, ())]
            if others and not may_share(name, [*others, model]):
                return name
        return None


class _Parsed(NamedTuple):
    """The model of a file, as it was when it was parsed; `file` is None for one that had just been written."""

    file: FolderFile | None
    model: ModelConfig | None
    problem: str = ""


def _paths(model: ModelConfig) -> Iterable[Path]:
    """The paths of a model's weights and adapters, which are resolved already."""
    return (Path(path) for path in (model.weights, *(adapter.path for adapter in model.lora)) if path)
