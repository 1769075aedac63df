from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.settings import Settings, load_settings, unknown_variables


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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MILLRACE_SLOTS", "many", "MILLRACE_SLOTS must be a whole number from 1 to 256, or auto, not 'many'."),
        ("MILLRACE_SLOTS", "0", "MILLRACE_SLOTS must be a whole number from 1 to 256, or auto, not '0'."),
        ("MILLRACE_PORT", "99999", "MILLRACE_PORT must be at most 65535, not '99999'."),
        (
            "MILLRACE_SHARE_IDENTICAL_LINES",
            "perhaps",
            "MILLRACE_SHARE_IDENTICAL_LINES must be true or false, not 'perhaps'.",
        ),
        ("MILLRACE_LOG_LEVEL", "loud", "MILLRACE_LOG_LEVEL must be debug, info, warning or error, not 'loud'."),
        ("DATABASE_URL", "mysql://me:secret@db/x", "DATABASE_URL must be a URL of Postgres, such as postgresql://"),
        ("DATABASE_URL", "db:5432", "DATABASE_URL must be a URL of Postgres"),
        ("DATABASE_URL", "postgresql://me:se@ret:x@db:p/x", "in a password, write @ as %40"),
        (
            "REDIS_URL",
            "http://cache",
            "REDIS_URL must be a URL of Valkey or Redis, such as redis://HOST:6379/0, not http://…",
        ),
        ("MILLRACE_REDIS_URL", "cache:6379", "MILLRACE_REDIS_URL must be a URL of Valkey or Redis"),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_set(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "should" not in str(caught.value)


def test_a_wrong_option_is_named_as_it_was_typed() -> None:
    with pytest.raises(ConfigError, match="^--port must be at most 65535, not 99999.$"):
        load_settings(port=99999)


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MILLRACE_PORT", "DATABASE_URL", "MILLRACE_STATE_DIR"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert (settings.port, settings.database_url) == (8000, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 5\nslotz = 2\n", "millrace.toml, line 2: there is no setting 'slotz'; did you mean 'slots'?"),
        ("# a\n\nslots = 0\n", "millrace.toml, line 3: slots must be a whole number from 1 to 256, or auto, not 0."),
        ("port = \n", "millrace.toml cannot be read: Invalid value (at line 1"),
    ],
)
def test_an_error_in_the_file_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "millrace.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(said)


def test_variables_that_are_nearly_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MILLRACE_PROT", "MILLRACE_XYZZY", "MILLRACE_PORT", "MILLRACE_FAILPOINT", "MILLRACE_CI"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == [
        "there is no setting MILLRACE_PROT; did you mean 'MILLRACE_PORT'?",
        "there is no setting MILLRACE_XYZZY; it is ignored.",
    ]


def test_a_variable_with_the_suffix_names_a_file_with_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "millrace.toml").write_text("slots = 3\n")
    for name, text in {"url": "postgresql://a:secret@b/c\n", "redis": "redis://d", "slots": "5\r\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("MILLRACE_REDIS_URL_FILE", str(tmp_path / "redis"))
    monkeypatch.setenv("MILLRACE_SLOTS_FILE", str(tmp_path / "slots"))
    settings = load_settings()
    assert (settings.database_url, settings.redis_url) == ("postgresql://a:secret@b/c", "redis://d")
    assert settings.slots == 5, "it is stronger than millrace.toml"
    assert unknown_variables() == []
    monkeypatch.setenv("DATABASE_URL", "postgresql://e/f")
    assert load_settings().database_url == "postgresql://e/f", "a variable is stronger than its file"
    monkeypatch.setenv("DATABASE_URL", "")
    assert load_settings().database_url == "postgresql://a:secret@b/c"


@pytest.mark.parametrize(
    ("variable", "content", "said"),
    [
        ("DATABASE_URL_FILE", None, "DATABASE_URL_FILE: FILE cannot be read: No such file or directory."),
        ("DATABASE_URL_FILE", b"\n", "DATABASE_URL_FILE: FILE is empty. Write the value of the setting into it"),
        ("MILLRACE_REDIS_URL_FILE", b"\xff\xfe", "MILLRACE_REDIS_URL_FILE: FILE cannot be read: it is not UTF-8."),
        ("DATABASE_URL_FILE", b"mysql://me:secret@db/x", "DATABASE_URL_FILE must be a URL of Postgres"),
        (
            "MILLRACE_SLOTS_FILE",
            b"many\n",
            "MILLRACE_SLOTS_FILE must be a whole number from 1 to 256, or auto, not 'many'.",
        ),
    ],
)
def test_a_wrong_file_of_a_setting_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / "value"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert said.replace("FILE is", f"{file} is").replace("FILE cannot", f"{file} cannot") in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_file_of_no_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_SLOTZ_FILE", "x")
    assert unknown_variables() == ["there is no setting MILLRACE_SLOTZ_FILE; it is ignored."]
