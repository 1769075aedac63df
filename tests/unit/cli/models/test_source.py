"""What a user may write after `models add`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import CommandFailed
from cli.models.sources.source import HubSource, LocalSource, Source, UrlSource, parse_source, shown_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:acme/tiny", HubSource(repository="acme/tiny")),
        ("hf://acme/tiny", HubSource(repository="acme/tiny")),
        ("hf:acme/tiny:Q4_K_M", HubSource(repository="acme/tiny", quant="Q4_K_M")),
        ("hf:acme/tiny@v1.0", HubSource(repository="acme/tiny", revision="v1.0")),
        ("hf:acme/tiny:q8_0@refs/pr/1", HubSource(repository="acme/tiny", quant="q8_0", revision="refs/pr/1")),
        ("hf:acme/tiny@v1:Q8_0", HubSource(repository="acme/tiny", quant="Q8_0", revision="v1")),
        ("hf:acme/tiny/a/b.gguf", HubSource(repository="acme/tiny", file="a/b.gguf")),
        ("hf:acme/tiny/b.gguf@abc", HubSource(repository="acme/tiny", file="b.gguf", revision="abc")),
        ("hf.co/acme/tiny:Q4_0", HubSource(repository="acme/tiny", quant="Q4_0")),
        ("https://huggingface.co/acme/tiny", HubSource(repository="acme/tiny")),
        ("https://huggingface.co/acme/tiny/tree/main", HubSource(repository="acme/tiny")),
        ("https://huggingface.co/acme/tiny/tree/main/Q8_0", HubSource(repository="acme/tiny")),
        ("https://hf.co/acme/tiny/blob/v2/x.gguf", HubSource(repository="acme/tiny", file="x.gguf", revision="v2")),
        (
            "https://huggingface.co/acme/tiny/resolve/main/x.gguf?download=true",
            HubSource(repository="acme/tiny", file="x.gguf"),
        ),
        ("https://example.com/a/x%20y.GGUF?k=1", UrlSource("https://example.com/a/x%20y.GGUF?k=1")),
        ("HTTP://example.com/x.gguf", UrlSource("HTTP://example.com/x.gguf")),
    ],
)
def test_addresses_are_parsed(text: str, source: Source) -> None:
    assert parse_source(text) == source


def test_files_and_folders_come_before_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("acme/tiny").mkdir(parents=True)
    Path("x.gguf").touch()
    assert parse_source("acme/tiny") == LocalSource(Path("acme/tiny"))
    assert parse_source("acme/tiny:Q8_0") == LocalSource(Path("acme/tiny"), "Q8_0")
    assert parse_source("x.gguf") == LocalSource(Path("x.gguf"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("acme/tiny", "For the repository on the hub, write hf:acme/tiny."),
        ("nothing.gguf", "There is no file or folder nothing.gguf. WHAT is a GGUF file, a folder,"),
        ("no/such.gguf", "There is no file or folder no/such.gguf. WHAT is"),
        ("", "There is no file or folder"),
        ("hf:acme", "write hf:ORG/REPO"),
        ("hf:acme/../x", "write hf:ORG/REPO"),
        ("hf:acme/tiny/x.bin", "x.bin is no GGUF file"),
        ("file:///etc/passwd", "use http, https or hf:"),
        ("ftp://example.com/x.gguf", "use http, https or hf:"),
        ("https:///x.gguf", "it has no host"),
        ("https://[::1/x.gguf", "is no valid address"),
        ("https://example.com:99999/x.gguf", "is no valid address"),
        ("https://example.com/x.zip", "the address must end in .gguf"),
    ],
)
def test_what_cannot_be_a_model_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        parse_source(text)
    assert reason in str(caught.value)


def test_credentials_of_an_address_are_not_shown() -> None:
    assert (
        shown_source("https://me:secret@example.com:8443/a/x.gguf?token=secret#y")
        == "https://example.com:8443/a/x.gguf"
    )
    assert shown_source("hf:acme/tiny:Q8_0") == "hf:acme/tiny:Q8_0"
