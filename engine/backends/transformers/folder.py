"""The folder of a model: its configuration, and the sentences with which a folder is refused before torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.models.hf_folder import FOLDER_FILES, HUB_PREFIX, INSTALL, FolderError, servable_architecture
from engine.errors import ModelFailed, ModelMissing


def resolve_folder(name: str) -> Path:
    """The folder of a model: `name` itself, or for `hf:ORG/REPO` the snapshot in the cache of the hub, which is downloaded first.

    Raises ModelFailed, and ModelMissing for a folder that is not there.
    """
    if not name.startswith(HUB_PREFIX):
        folder = Path(name)
        if not folder.is_dir():
            raise ModelMissing(f"There is no folder {name}.")
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise ModelFailed(f"{name} needs the package huggingface-hub. {INSTALL}") from None
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FOLDER_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelFailed(f"The hub did not give {name}: {_first_line(error)}") from None


def read_json(path: Path) -> dict[str, Any]:  # Any: JSON
    """Read a JSON file; empty where there is none. Raises ModelFailed for a broken one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFailed(f"{path} cannot be read: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise ModelFailed(f"{path} is not a JSON object.")
    return values


def folder_architecture(folder: Path) -> str:
    """The name of the model's class; raises ModelFailed for a folder that cannot be served."""
    try:
        return servable_architecture(folder)
    except FolderError as error:
        raise ModelFailed(f"{error}.") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
