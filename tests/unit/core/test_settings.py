from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.settings import Settings, load_settings


def test_every_field_has_a_description() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_arguments_beat_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "millrace.toml").write_text("port = 1\nslots = 2\nlease_seconds = 3\n")
    monkeypatch.setenv("MILLRACE_SLOTS", "4")
    monkeypatch.setenv("MILLRACE_PORT", "5")
    settings = load_settings(port=6)
    assert (settings.port, settings.slots, settings.lease_seconds) == (6, 4, 3)


def test_the_usual_names_of_addresses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://a/b")
    monkeypatch.setenv("REDIS_URL", "redis://c")
    settings = load_settings()
    assert (settings.database_url, settings.redis_url) == ("postgresql://a/b", "redis://c")


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_SLOTS", "many")
    with pytest.raises(ConfigError, match="slots"):
        load_settings()


def test_an_unknown_setting_in_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "millrace.toml").write_text("slotz = 2\n")
    with pytest.raises(ConfigError, match="slotz"):
        load_settings()
