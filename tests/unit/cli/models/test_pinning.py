"""`millrace models pin`: one key of a model file changes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cli.errors import CommandFailed
from cli.models.pinning import Pinned, set_pinned
from core.models.model_files import load_model
from core.models.models_folder import load_models
from core.settings import ROOT

COMMENTED = """\
# The one for the shop.
name: lab/shop   # as the app calls it
aliases: [shop]

backend: fake
# Not more: the machine is small.
slots: 2
"""


def write(folder: Path, text: str, name: str = "shop.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_pin_adds_one_line_and_keeps_comments_and_order(tmp_path: Path) -> None:
    path = write(tmp_path, COMMENTED)
    assert set_pinned(tmp_path, "shop", is_pinned=True) == Pinned(path, {"pinned": "true"})
    lines = path.read_text().splitlines()
    assert [line for line in lines if line != "pinned: true"] == COMMENTED.splitlines()
    assert load_model(path).pinned
    set_pinned(tmp_path, "lab/shop", is_pinned=False)
    assert path.read_text() == COMMENTED.replace("calls it\n", "calls it\npinned: false\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("name: a\nbackend: fake\npinned: false # for now\n", "name: a\nbackend: fake\npinned: true # for now\n"),
        ("name: a\npinned:    no\nbackend: fake", "name: a\npinned:    true\nbackend: fake"),
        ("backend: fake\nname: a", "backend: fake\nname: a\npinned: true\n"),
        ("backend: fake\r\nname: 'a' # x\r\n", "backend: fake\r\nname: 'a' # x\r\npinned: true\r\n"),
        ("---\n  name: a\n  backend: fake\n...\n", "---\n  name: a\n  pinned: true\n  backend: fake\n...\n"),
        ("{name: a, backend: fake}\n", "{name: a, pinned: true, backend: fake}\n"),
        ("\ufeffname: a\nbackend: fake\n", "\ufeffname: a\npinned: true\nbackend: fake\n"),
        ("name: a\nbackend: fake\nstopwords:\n- Ü\n- 'pinned: false'\n",
         "name: a\npinned: true\nbackend: fake\nstopwords:\n- Ü\n- 'pinned: false'\n"),
    ],
)  # fmt: skip
def test_every_style_of_a_file_is_kept(tmp_path: Path, before: str, after: str) -> None:
    path = write(tmp_path, before)
    set_pinned(tmp_path, "a", is_pinned=True)
    assert path.read_bytes().decode() == after
    assert load_model(path).pinned


def test_a_file_that_is_right_already_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path, COMMENTED)
    before = path.stat()
    set_pinned(tmp_path, "shop", is_pinned=False)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    elsewhere, models = tmp_path / "elsewhere", tmp_path / "models"
    elsewhere.mkdir()
    models.mkdir()
    path = write(elsewhere, COMMENTED)
    path.chmod(0o640)
    (models / "shop.yaml").symlink_to(path)
    set_pinned(models, "shop", is_pinned=True)
    assert (models / "shop.yaml").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert load_model(path).pinned


def test_keys_that_contradict_a_pin_are_changed_with_it_and_reported(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: a\nload: lazy # saves memory\nbackend: fake\n# In minutes: 5.\nkeep_alive_seconds: 300 # idle\n",
    )
    changed = {"load": "eager", "keep_alive_seconds": "null", "pinned": "true"}
    assert set_pinned(tmp_path, "a", is_pinned=True) == Pinned(path, changed)
    assert path.read_text() == (
        "name: a\npinned: true\nload: eager # saves memory\nbackend: fake\n# In minutes: 5.\nkeep_alive_seconds: null # idle\n"
    )
    assert load_model(path).pinned
    assert set_pinned(tmp_path, "a", is_pinned=False) == Pinned(path, {"pinned": "false"})
    assert set_pinned(tmp_path, "a", is_pinned=False) == Pinned(path, {})


def test_a_file_that_would_not_be_valid_is_named_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, COMMENTED)
    monkeypatch.setattr("cli.models.pinning.with_key", lambda text, *_: text + "stray: 1\n")
    with pytest.raises(CommandFailed, match=r"shop\.yaml, .*no key 'stray'.*Nothing was changed"):
        set_pinned(tmp_path, "shop", is_pinned=True)
    assert path.read_text() == COMMENTED
    assert [each.name for each in tmp_path.iterdir()] == ["shop.yaml"]


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    write(tmp_path, COMMENTED)
    with pytest.raises(CommandFailed, match="shup"):
        set_pinned(tmp_path, "shup", is_pinned=True)


def test_bare_weights_get_a_file_that_describes_the_same_model(tmp_path: Path) -> None:
    weights = tmp_path / "Small-Q8_0.gguf"
    weights.write_bytes((ROOT / "models" / "demo.gguf").read_bytes())
    served = load_models(tmp_path).get("Small-Q8_0")
    assert served is not None
    path = set_pinned(tmp_path, "Small-Q8_0", is_pinned=True).file
    assert path == tmp_path / "Small-Q8_0.yaml"
    assert load_models(tmp_path).models == [served.model_copy(update={"pinned": True})]
    assert yaml.safe_load(path.read_text())["parameters"] == {"model": "Small-Q8_0.gguf"}
    set_pinned(tmp_path, "Small-Q8_0", is_pinned=False)
    assert load_models(tmp_path).models == [served]
