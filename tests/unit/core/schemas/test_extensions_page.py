"""`docs/extensions.md` lists the fields of responses."""

from __future__ import annotations

import re

from api.schemas.batch_extensions import Reproducibility
from core.settings import ROOT

PAGE = (ROOT / "docs" / "extensions.md").read_text()


def test_the_record_of_an_answer_is_on_the_page_with_every_field_and_no_other() -> None:
    table = PAGE.split("`reproducibility` describes how the answer was made:\n")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(Reproducibility.model_fields)
