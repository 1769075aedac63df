"""CSV in and out, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.mapping.conftest import Run

SCHEMA = "category: billing|other"


def labelled(tmp_path: Path, content: bytes, **spec: Any) -> bytes:
    """Map a file with a schema and return the output."""
    (tmp_path / "in.csv").write_bytes(content)
    Run(tmp_path / "in.csv", tmp_path / "out.csv", lambda _: {"category": "billing"}, schema=SCHEMA, **spec)
    return (tmp_path / "out.csv").read_bytes()


def test_columns_are_appended(tmp_path):
    assert labelled(tmp_path, b"id,text\n1,a\n2,b\n") == b"id,text,category,error\n1,a,billing,\n2,b,billing,\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'id;text\r\n1;"a;\r\nb"\r\n', b'id;text;category;error\r\n1;"a;\r\nb";billing;\r\n'),
        ("id,text\n1,ü".encode("cp1252"), "id,text,category,error\n1,ü,billing,".encode("cp1252")),
        ("\ufeffid\ttext\n1\t漢\n".encode(), "\ufeffid\ttext\tcategory\terror\n1\t漢\tbilling\t\n".encode()),
        (
            "\ufeffid,text\r\n1,漢\r\n".encode("utf-16-le"),
            "\ufeffid,text,category,error\r\n1,漢,billing,\r\n".encode("utf-16-le"),
        ),
        (b"sep=;\r\nid;text\r\n1;x\r\n", b"sep=;\r\nid;text;category;error\r\n1;x;billing;\r\n"),
        (b"id,text\r1,a\r2,b\r", b"id,text,category,error\r1,a,billing,\r2,b,billing,\r"),
        (b'"a" "text"\n"1" 5 "x"\n', None),
    ],
)
def test_the_dialect_is_kept(tmp_path, content, expected):
    if expected is not None:
        assert labelled(tmp_path, content) == expected
