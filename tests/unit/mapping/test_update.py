"""Updates: rows that did not change keep the answers of an earlier output."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mapping.errors import MappingError
from tests.unit.mapping.conftest import Run

FORMATS = {".csv": "csv", ".jsonl": "ndjson", ".parquet": "parquet"}
SCHEMA = "label: x|y, amount: number?, due: date?"


def label(text: str):
    return ValueError("down") if text == "bad" else {"label": "x", "amount": len(text), "due": "2024-01-02"}


def labels(text: str):
    return {"label": "y", "amount": None, "due": None}


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_only_new_changed_and_failed_rows_are_asked(tmp_path, name, out):
    def write(texts: list[str | None]) -> None:
        frame = pl.DataFrame({"id": [str(n) for n in range(len(texts))], "text": texts})
        getattr(frame, f"write_{FORMATS[Path(name).suffix]}")(tmp_path / name)

    write(["a", "b", "bad", None])
    assert Run(tmp_path / name, tmp_path / out, label, schema=SCHEMA).written.failed == 1
    (tmp_path / out).rename(tmp_path / f"old-{out}")
    write(["a", "changed", "bad", None, "new"])
    run = Run(tmp_path / name, tmp_path / out, labels, schema=SCHEMA, update=tmp_path / f"old-{out}")
    assert run.prompts == ["changed", "bad", "new"]
    assert (run.planned.kept, run.planned.asked, run.planned.left_out) == (1, 3, 1)
    rows = getattr(pl, f"read_{FORMATS[Path(out).suffix]}")(tmp_path / out).to_dicts()
    assert [row["label"] for row in rows] == ["x", "y", "y", None, "y"]
    assert [row["amount"] for row in rows] == [1, None, None, None, None]
    assert str(rows[0]["due"])[:10] == "2024-01-02"
    assert all(row["error"] is None for row in rows)


def test_a_moved_row_keeps_its_answer(tmp_path):
    (tmp_path / "in.csv").write_text("text\na\nb\n")
    Run(tmp_path / "in.csv", tmp_path / "old.csv")
    (tmp_path / "in.csv").write_text('text\nb\n"a"\nc\na\n')
    run = Run(tmp_path / "in.csv", tmp_path / "out.csv", str.lower, update=tmp_path / "old.csv")
    assert run.prompts == ["c"]
    assert (tmp_path / "out.csv").read_text() == 'text,answer,error\nb,B,\n"a",A,\nc,c,\na,A,\n'


def test_a_file_that_is_no_earlier_output_is_refused(tmp_path):
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "old.csv").write_text("text,label\na,b\n")
    with pytest.raises(MappingError, match="old.csv has no column 'answer'"):
        Run(tmp_path / "in.csv", tmp_path / "out.csv", update=tmp_path / "old.csv")
