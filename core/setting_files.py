"""Settings in files: the variable `NAME_FILE` names a file with the value of the setting `NAME`.

systemd's credentials, Compose's secrets and Kubernetes' mounts all give a service files, which neither its environment nor `ps`
shows to others. A line break at the end of the file is no part of the value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from core.errors import ConfigError

SUFFIX: Final = "_FILE"


class SettingFiles(PydanticBaseSettingsSource):
    """The settings whose variable has the suffix. Raises ConfigError for a file that cannot be read or has no text."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """Return the value of a field if a variable names its file, and the key by which all sources know the field."""
        names = _variables(field, f"{self.config.get('env_prefix', '')}{field_name}")
        given = {name.upper(): name for name, value in os.environ.items() if value}
        spelled = next((given[name.upper() + SUFFIX] for name in names if name.upper() + SUFFIX in given), None)
        value = None if spelled is None else _read(spelled, Path(os.environ[spelled]))
        return value, names[0] if field.validation_alias else field_name, False

    def __call__(self) -> dict[str, str]:
        """Return the values by key."""
        found = [self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()]
        return {key: value for value, key, _ in found if value is not None}


def _variables(field: FieldInfo, default: str) -> list[str]:
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [default]


def _read(variable: str, file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{variable}: {file} cannot be read: {reason}.") from None
    if not text.strip():
        raise ConfigError(f"{variable}: {file} is empty. Write the value of the setting into it, or unset {variable}.")
    return text
