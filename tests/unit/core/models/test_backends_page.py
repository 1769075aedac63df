"""`docs/backends.md` has recipes for the servers that are used most, and the codes of errors."""

from __future__ import annotations

import re

from core import errors
from core.settings import ROOT

PAGE = (ROOT / "docs" / "backends.md").read_text()
FILES = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("name:")]


def test_the_page_has_recipes_and_the_codes_of_errors() -> None:
    commands = " ".join(FILES)
    for word in ("vllm serve", "sglang.launch_server", "llama-server", "11434", "tgi", "api.openai.com"):
        assert word in commands
    for code in (errors.UPSTREAM_UNAUTHORIZED, errors.UPSTREAM_NOT_FOUND, errors.UPSTREAM_ACCOUNT):
        assert f"`{code}`" in PAGE
