from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mapping.conftest import Run


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("{{ row }}", '{"id":"1","text":"one"}'),
        ("{% for name in row %}{{ name }}={{ row[name] }};{% endfor %}", "id=1;text=one;"),
        ("Text: {{ row['text'] }}", "Text: one"),
    ],
)
def test_a_prompt_may_name_all_columns_as_the_row(tmp_path: Path, prompt: str, first: str) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,one\n2,two\n")
    run = Run(tmp_path / "in.csv", tmp_path / "out.csv", prompt=prompt)
    assert run.prompts[0] == first
    assert len(run.requests) == 2
