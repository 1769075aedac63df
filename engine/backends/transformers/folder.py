"""The folder of a model: its configuration, and the sentences with which a folder is refused before torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from core.models.hf_folder import HUB_PREFIX, INSTALL, FolderError, architecture, check_folder
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
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelFailed(f"The hub did not give {name}: {_first_line(error)}") from None


_FILES: Final = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


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


def servable_architecture(folder: Path) -> str:
    """The name of the model's class; raises ModelFailed for a folder that cannot be served."""
    try:
        check_folder(folder)
    except FolderError as error:
        raise ModelFailed(f"{error}.") from None
    config = read_json(folder / "config.json")
    if not (name := architecture(config)):
        raise ModelFailed(f"{folder / 'config.json'} names no class of a model in `architectures`.")
    if config.get("is_encoder_decoder"):
        raise ModelFailed(f"{name} is an encoder and a decoder; the backend transformers serves only one of the two.")
    if "vision_config" in config or "audio_config" in config:
        raise ModelFailed(f"{name} reads images or sound; the backend transformers serves models of text only.")
    return name


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
