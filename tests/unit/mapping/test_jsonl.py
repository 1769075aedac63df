"""JSON Lines in and out."""

from __future__ import annotations

from tests.unit.mapping.conftest import Run


def test_objects_keep_their_text(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a" , "n":1.0}\r\n\n{"text":"b","x":{}} \n[1]\n{"text":null}')
    run = Run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", column="label")
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == [
        b'{"text": "a" , "n":1.0,"label":"A","error":null}',
        b"",
        b'{"text":"b","x":{},"label":"B","error":null} ',
        b'{"_raw":"[1]","label":null,"error":"line 4 is no JSON object: Expected `object`, got `array`"}',
        b'{"text":null,"label":null,"error":null}',
    ]
    assert (run.planned.asked, run.planned.failed, run.planned.left_out, run.written.failed) == (2, 1, 1, 1)
