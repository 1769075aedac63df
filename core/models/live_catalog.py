"""Live catalog: follows the models folder while a process runs.

The folder is looked at every second, without notifications of the kernel, since network drives and containers have none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from core.errors import ConfigError
from core.models.model_files import ModelCatalog, ModelConfig, weight_paths
from core.models.models_folder import FolderContents, FolderReader

log = structlog.get_logger()

_IDLE_SHARE: Final = 50  # the pause after a look at the folder is this many times as long as the look


class LiveCatalog:
    """The present models of a folder. `refresh` may be called from any thread; `current` is always a whole catalog.

    Files that are not valid are left out, and listed in `problems`: `load_models` is for those who want an error. Raises
    ConfigError when there is no such folder; one that disappears later leaves the models as they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = FolderReader(folder)
        self._lock = threading.Lock()
        self._contents = self._reader.read()
        self._current = ModelCatalog(list(self._contents.models.values()))
        self._folder_problem = ""
        self._stamps = _stamps(self._current)
        self._seen_stamps = self._stamps
        self._log_problems({}, self._contents.problems)
        self._is_closed = False
        self._wakes = SimpleQueue[None]()  # unlike those of an Event, its `put` may interrupt itself
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> ModelCatalog:
        """The models of the last look."""
        return self._current

    @property
    def problems(self) -> Mapping[str, str]:
        """The files that cannot be used, and a sentence on each."""
        problem = {str(self._folder): self._folder_problem} if self._folder_problem else {}
        return {**self._contents.problems, **problem}

    def stamp(self, model: str) -> str:
        """Return a text that changes when a file of the model's weights has changed, and has stopped to change."""
        return self._stamps.get(model, "")

    def refresh(self) -> bool:
        """Look at the folder now. Returns whether a model was added, changed or removed, or its weights were replaced."""
        with self._lock:
            try:
                contents = self._reader.read()
            except ConfigError as error:
                if self._folder_problem != str(error):
                    log.error("models_folder_lost", reason=str(error))
                self._folder_problem = str(error)
                return False
            self._folder_problem = ""
            is_changed = self._take(contents)
            return self._take_stamps() or is_changed

    def start(self, on_change: Callable[[], None] = lambda: None, *, poll_seconds: float = 1.0) -> None:
        """Look at the folder in a thread until closed; `on_change` is called in it after each change."""
        self._thread = threading.Thread(
            target=self._run, args=(on_change, poll_seconds), name="models-folder", daemon=True
        )
        self._thread.start()

    def refresh_soon(self) -> None:
        """Let the thread look now. Callable from a signal handler, whatever that interrupts."""
        self._wakes.put(None)

    def close(self) -> None:
        """Stop the thread."""
        self._is_closed = True
        self._wakes.put(None)
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _run(self, on_change: Callable[[], None], poll_seconds: float) -> None:
        pause = poll_seconds
        while not self._is_closed:
            self._wait(pause)
            began = time.thread_time()
            try:
                if not self._is_closed and self.refresh():
                    on_change()
            except Exception as error:  # the edge of this thread: the next look must come
                log.error("models_folder_failed", exc_info=error)
            pause = max(poll_seconds, _IDLE_SHARE * (time.thread_time() - began))

    def _wait(self, seconds: float) -> None:
        """Wait until the next look is due; wakes that have come together are one."""
        with suppress(Empty):
            self._wakes.get(timeout=seconds)
            while True:
                self._wakes.get_nowait()

    def _take(self, contents: FolderContents) -> bool:
        if contents is self._contents:
            return False
        self._log_problems(self._contents.problems, contents.problems)
        self._contents = contents
        old, new = ({model.name: model for model in each} for each in (self._current.models, contents.models.values()))
        if old == new:
            return False
        self._current = ModelCatalog(list(new.values()))
        changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        log.info("models_changed", added=added, changed=changed, removed=removed)
        return True

    def _take_stamps(self) -> bool:
        """Take over stamps that are the same in two looks: weights that are being copied change with each."""
        last, self._seen_stamps = self._seen_stamps, _stamps(self._current)
        stamps = {
            name: stamp if stamp == last.get(name, stamp) else self._stamps.get(name, stamp)
            for name, stamp in self._seen_stamps.items()
        }
        replaced = sorted(name for name, stamp in stamps.items() if self._stamps.get(name, stamp) != stamp)
        self._stamps = stamps
        if replaced:
            log.info("weights_replaced", models=replaced)
        return bool(replaced)

    def _log_problems(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        for file, problem in new.items():
            if old.get(file) != problem:
                log.warning("model_file_not_used", file=file, reason=problem)


def _stamps(catalog: ModelCatalog) -> dict[str, str]:
    return {model.name: _stamp(model) for model in catalog.models}


def _stamp(model: ModelConfig) -> str:
    """Sizes and times of the files that the engine reads; of a missing one, nothing."""
    parts = []
    for path in weight_paths(model):
        try:
            status = path.stat()
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{status.st_size}:{status.st_mtime_ns}")
    return " ".join(parts)
