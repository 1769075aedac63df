"""`docs/backends.md`: its model files are valid, and its tables name the codes of errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core import errors
from core.models.engine_options import BackendKind
from core.models.model_files import load_model
from core.settings import ROOT

PAGE = (ROOT / "docs" / "backends.md").read_text()
FILES = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("name:")]


@pytest.mark.parametrize("block", FILES, ids=[block.split("\n", 1)[0] for block in FILES])
def test_a_model_file_of_the_page_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block)
    model = load_model(tmp_path / "mine.yaml")
    if model.backend is BackendKind.OPENAI:
        assert model.base_url or "{port}" in " ".join(model.command)


def test_the_page_has_recipes_and_the_codes_of_errors() -> None:
    commands = " ".join(FILES)
    for word in ("vllm serve", "sglang.launch_server", "llama-server", "11434", "tgi", "api.openai.com"):
        assert word in commands
    for code in (errors.UPSTREAM_UNAUTHORIZED, errors.UPSTREAM_NOT_FOUND, errors.UPSTREAM_ACCOUNT):
        assert f"`{code}`" in PAGE
