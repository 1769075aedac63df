"""Tables in and out over HTTP, on the real stack."""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import psutil
import pytest
from openai import OpenAI

from core.settings import ROOT
from tests.support.check import check_problem
from tests.support.processes import command_of
from tests.support.stack import StackProcess, batch_lines, start_batch, wait_for, write_lines

MAP = "/v1/batches/map"
PREVIEW = "/v1/batches/map/preview"
MAPPING = {"model": "fake", "prompt": "Classify: {text}", "schema": "kind: good|bad, score: integer"}
CSV = b'text;owner\r\nHello;Zo\xe9\r\n"two\r\nlines";\r\nHello;again\r\n'  # as Excel writes it in Europe


def send(
    http: httpx2.Client, url: str, content: bytes, mapping: Any = MAPPING, name: str = "in.csv", **fields: Any
) -> Any:
    sent = {"mapping": mapping if isinstance(mapping, str) else json.dumps(mapping), **fields}
    return http.post(url, files={"file": (name, content)}, data=sent)


def mapped(http: httpx2.Client, content: bytes, mapping: Any = MAPPING, name: str = "in.csv", **fields: Any) -> Any:
    answer = send(http, MAP, content, mapping, name, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_end(http: httpx2.Client, batch_id: str) -> Any:
    def ended() -> bool:
        return http.get(f"/v1/batches/{batch_id}").json()["status"] in ("completed", "failed", "cancelled")

    wait_for(ended, f"{batch_id} has ended")
    return http.get(f"/v1/batches/{batch_id}").json()


def table(http: httpx2.Client, batch_id: str, **query: str) -> httpx2.Response:
    answer = http.get(f"/v1/batches/{batch_id}/table", params=query)
    assert answer.status_code == 200, answer.text
    return answer


def rows(answer: httpx2.Response, encoding: str = "utf-8-sig", delimiter: str = ",") -> list[dict[str, str]]:
    text = io.StringIO(answer.content.decode(encoding), newline="")
    return list(csv.DictReader(text, delimiter=delimiter))


def test_a_csv_goes_in_and_comes_out_with_its_answers_and_its_own_bytes(http: httpx2.Client) -> None:
    preview = send(http, PREVIEW, CSV, sample="2").json()
    assert (preview["format"], preview["encoding"], preview["delimiter"]) == ("csv", "cp1252", ";")
    assert (preview["rows"], preview["rows_asked"], preview["requests"]) == (3, 3, 2)
    assert preview["columns"] == ["text", "owner"]
    assert [each["name"] for each in preview["added_columns"]] == ["kind", "score", "error"]
    assert [each["row"] for each in preview["sample"]] == [1, 2]
    assert preview["sample"][0]["values"] == {"text": "Hello", "owner": "Zoé"}
    assert preview["sample"][0]["body"]["messages"][-1]["content"] == "Classify: Hello"
    batch = mapped(http, CSV, metadata='{"name": "mine"}', priority="7")
    assert (batch["metadata"], batch["priority"]) == ({"name": "mine"}, 7)
    assert http.get(f"/v1/batches/{batch['id']}/mapping").json()["prompt"] == MAPPING["prompt"]
    assert http.get(f"/v1/files/{batch['table_file_id']}/content").content == CSV
    assert wait_end(http, batch["id"])["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    answer = table(http, batch["id"])
    assert answer.headers["content-disposition"].startswith('attachment; filename="in_answers.csv"')
    lines = answer.content.split(b"\r\n")
    assert lines[0] == b"text;owner;kind;score;error"
    assert lines[1].startswith(b"Hello;Zo\xe9;")
    found = rows(answer, "cp1252", ";")
    assert [row["owner"] for row in found] == ["Zoé", "", "again"]
    assert {row["kind"] for row in found} <= {"good", "bad"}
    assert (found[0]["kind"], found[0]["score"]) == (found[2]["kind"], found[2]["score"]), "asked once"
    frame = pl.read_parquet(io.BytesIO(table(http, batch["id"], format="parquet").content))
    assert frame.schema["score"] == pl.Int64
    objects = [json.loads(line) for line in table(http, batch["id"], format="jsonl").text.splitlines()]
    assert [row["text"] for row in objects] == ["Hello", "two\r\nlines", "Hello"]
    assert objects[0]["kind"] == found[0]["kind"] == frame["kind"][0]


@pytest.mark.parametrize("name", ["in.xlsx", "in.parquet", "in.jsonl", "in.tsv"])
def test_other_formats_are_read_and_their_answers_written(http: httpx2.Client, name: str) -> None:
    frame, content = pl.DataFrame({"text": ["a", "b"], "day": [1, 2]}), io.BytesIO()
    write: dict[str, Any] = {
        "in.xlsx": frame.write_excel,
        "in.parquet": frame.write_parquet,
        "in.jsonl": frame.write_ndjson,
    }
    write.get(name, partial(frame.write_csv, separator="\t"))(content)
    batch = mapped(http, content.getvalue(), {"model": "fake", "embed": "{text}", "column": "vector"}, name)
    assert batch["endpoint"] == "/v1/embeddings"
    assert wait_end(http, batch["id"])["request_counts"]["completed"] == 2
    joined = pl.read_parquet(io.BytesIO(table(http, batch["id"], format="parquet", outcome="completed").content))
    assert (joined["text"].to_list(), joined.schema["vector"]) == (["a", "b"], pl.List(pl.Float32))
    assert rows(table(http, batch["id"], format="tsv"), delimiter="\t")[1]["text"] == "b"


def test_a_stored_file_is_mapped_and_a_failed_row_says_why(http: httpx2.Client, client: OpenAI) -> None:
    content = b"text\nshort\n" + b"x" * 5000 + b"\n"
    file = client.files.create(file=("t.csv", content), purpose="user_data")
    body = {"input_file_id": file.id, "mapping": {"model": "fake", "prompt": "{text}"}}
    batch = http.post(MAP, json=body).json()
    assert batch["table_file_id"] == file.id
    assert wait_end(http, batch["id"])["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    found = rows(table(http, batch["id"]))
    assert found[0]["answer"]
    assert not found[0]["error"]
    assert found[1]["error"].startswith("context_length_exceeded: ")
    assert [row["text"] for row in rows(table(http, batch["id"], outcome="completed"))] == ["short"]
    assert [row["text"][0] for row in rows(table(http, batch["id"], outcome="failed"))] == ["x"]
    client.files.delete(file.id)
    check_problem(http.get(f"/v1/batches/{batch['id']}/table"), 404, "table_deleted", "table_file_id")


def test_a_table_shows_what_is_there_so_far_and_the_results_of_a_retry(http: httpx2.Client) -> None:
    batch = mapped(http, b"text\n" + b"".join(b"row %d\n" % n for n in range(6)), {"model": "slow", "prompt": "{text}"})
    assert [row["error"] for row in rows(table(http, batch["id"]))].count("") < 6
    http.post(f"/v1/batches/{batch['id']}/cancel")
    wait_end(http, batch["id"])
    before = rows(table(http, batch["id"]))
    assert any("cancelled" in row["error"] for row in before)
    retry = http.post(f"/v1/batches/{batch['id']}/retry").json()
    assert retry["table_file_id"] == batch["table_file_id"]
    wait_end(http, retry["id"])
    for batch_id in (batch["id"], retry["id"]):
        after = rows(table(http, batch_id))
        assert [row["text"] for row in after] == [f"row {n}" for n in range(6)]
        assert all(row["answer"] and not row["error"] for row in after)


def test_a_batch_of_lines_is_a_table_of_prompts_and_answers(
    http: httpx2.Client, client: OpenAI, tmp_path: Path
) -> None:
    lines = batch_lines(3, max_tokens=5)
    lines[1]["body"] = {"model": "fake", "messages": [{"role": "user", "content": "x" * 5000}]}
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", lines))
    wait_end(http, batch_id)
    answer = table(http, batch_id)
    assert answer.content.startswith(b"\xef\xbb\xbfcustom_id,"), "by which Excel finds that it is UTF-8"
    found = rows(answer)
    assert [row["status"] for row in found] == ["completed", "failed", "completed"]
    assert (found[0]["prompt"], found[0]["completion_tokens"], found[0]["error"]) == ("Question 0?", "5", "")
    assert found[0]["answer"]
    assert found[1]["error_code"] == "context_length_exceeded"
    assert [row["custom_id"] for row in rows(table(http, batch_id, outcome="failed"))] == ["line-1"]
    frame = pl.read_parquet(io.BytesIO(table(http, batch_id, format="parquet").content))
    assert frame["prompt_tokens"].dtype == pl.Int64
    head = httpx2.head(f"{http.base_url}/v1/batches/{batch_id}/table", params={"format": "jsonl"})
    assert (head.status_code, head.content) == (200, b"")
    assert f"{batch_id}_table.jsonl" in head.headers["content-disposition"]
    check_problem(http.get(f"/v1/batches/{batch_id}/table", params={"format": "xlsx"}), 400, "invalid_value", "format")
    check_problem(http.get(f"/v1/batches/{batch_id}/mapping"), 404, None, "batch_id")


def test_a_table_is_read_without_a_mapping_and_shown_when_no_row_is_asked(http: httpx2.Client) -> None:
    read = http.post(PREVIEW, files={"file": ("in.csv", CSV)}).json()
    assert (read["rows"], read["columns"], read["requests"]) == (3, ["text", "owner"], 0)
    assert read["sample"][0] == {"row": 1, "values": {"text": "Hello", "owner": "Zoé"}, "custom_id": None, "body": None}
    shown = send(http, PREVIEW, CSV, {**TEXT, "where": "text == 'none'"}).json()
    assert (shown["rows"], shown["rows_asked"], shown["sample"]) == (3, 0, [])
    check_problem(http.post(MAP, files={"file": ("in.csv", CSV)}), 400, "missing_required_parameter", "mapping")


def test_the_program_of_the_manual_adds_columns_to_a_data_frame(server: StackProcess) -> None:
    program = (ROOT / "docs" / "tables.md").read_text().partition("```python\n")[2].partition("```")[0]
    program = program.replace("http://127.0.0.1:8000", server.url).replace('model="demo"', 'model="fake"')
    names: dict[str, Any] = {}
    exec(program.replace('"batch_inputs', f'"{ROOT}/batch_inputs'), names)
    assert names["labels"].columns == ["id", "text", "category", "error"]
    assert names["labels"]["category"].null_count() == names["labels"].height - 20


def test_a_client_that_leaves_ends_its_child(server: StackProcess, http: httpx2.Client) -> None:
    def children() -> list[psutil.Process]:
        return [process for process in server.descendants() if "mapping" in command_of(process)]

    content = b"text\n" + b"".join(b"row %d\n" % n for n in range(20_000))
    slow = json.dumps({**TEXT, "prompt": "{text}{% for n in range(15000) %}{{ n }}{% endfor %}"})
    with ThreadPoolExecutor(1) as thread:
        sent: dict[str, Any] = {"files": {"file": ("in.csv", content)}, "data": {"mapping": slow}}
        asked = thread.submit(http.post, PREVIEW, **sent, timeout=2)
        wait_for(lambda: len(children()) == 1, "a child reads the table")
        with pytest.raises(httpx2.ReadTimeout):
            asked.result()
    wait_for(lambda: not children(), "it has ended with the request", 5)


def test_a_map_that_is_sent_twice_makes_one_batch(http: httpx2.Client) -> None:
    def ask(mapping: Any = MAPPING) -> httpx2.Response:
        fields = {"mapping": json.dumps(mapping)}
        key = {"Idempotency-Key": "map-once"}
        return http.post(MAP, files={"file": ("in.csv", CSV)}, data=fields, headers=key)

    first = ask()
    assert first.status_code == 200, first.text
    assert ask().json()["id"] == first.json()["id"]
    check_problem(ask({**MAPPING, "limit": 1}), 409, "idempotency_key_reused", "Idempotency-Key")


TEXT = {"model": "fake", "prompt": "{text}"}


@pytest.mark.parametrize(
    ("content", "mapping", "code", "param", "words"),
    [
        (CSV, {**TEXT, "prompt": "{txet}"}, "invalid_mapping", "mapping.prompt", "did you mean 'text'"),
        (CSV, {**TEXT, "promt": "x"}, "invalid_mapping", "mapping.promt", "did you mean 'prompt'"),
        (CSV, {**TEXT, "model": "fak"}, "model_not_found", "mapping.model", "did you mean 'fake'"),
        (CSV, {**TEXT, "parameters": {"temperature": 9}}, "invalid_value", "mapping.parameters.temperature", "temperature"),
        (CSV, {**TEXT, "where": "text =="}, "invalid_mapping", "mapping.where", ""),
        (CSV, {**TEXT, "schema": "a: nonsense"}, "invalid_mapping", "mapping.schema", ""),
        (CSV, {**TEXT, "column": "owner"}, "invalid_mapping", "mapping.column", "owner"),
        (CSV, {"model": "fake"}, "invalid_mapping", "mapping", "prompt"),
        (CSV, {}, "invalid_mapping", "mapping.model", "missing"),
        (CSV, "{", "invalid_json", "mapping", "JSON"),
        (CSV, "[]", "invalid_type", "mapping", ""),
        (b"", TEXT, "invalid_table", "file", "empty"),
        (b"text\n", TEXT, "nothing_to_ask", "file", "no rows"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, TEXT, "invalid_table", "file", ""),
        (b"%PDF-1.7", TEXT, "invalid_table", "file", "PDF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", [MAP, PREVIEW])
def test_a_bad_table_or_mapping_names_its_field(
    http: httpx2.Client, url: str, content: bytes, mapping: Any, code: str, param: str, words: str
) -> None:
    answer = send(http, url, content, mapping)
    check_problem(answer, 404 if code == "model_not_found" else 400, code, param)
    assert words in answer.json()["error"]["message"]


def test_a_request_without_a_table_or_with_two_names_the_field(http: httpx2.Client) -> None:
    check_problem(http.post(MAP, json={"mapping": TEXT}), 400, "missing_required_parameter", "input_file_id")
    missing = {"input_file_id": "file-none", "mapping": TEXT}
    check_problem(http.post(MAP, json=missing), 404, None, "input_file_id")
    check_problem(http.post(MAP, json={**missing, "prompt": "x"}), 400, "unknown_parameter", "prompt")
    check_problem(http.post(MAP, content=CSV, headers={"content-type": "text/csv"}), 415, "unsupported_media_type")
    check_problem(
        http.post(MAP, data={"mapping": json.dumps(TEXT)}, files={"other": ("a", b"")}),
        400,
        "unknown_parameter",
        "other",
    )
    check_problem(send(http, MAP, CSV, {**TEXT, "where": "text == 'none'"}), 400, "nothing_to_ask", "file")
    hostile = {**TEXT, "prompt": "{{ text.__class__.__mro__ }}"}
    assert send(http, MAP, CSV, hostile).status_code == 400
    only_mapping = {"mapping": (None, json.dumps(TEXT))}
    check_problem(http.post(MAP, files=only_mapping), 400, "missing_required_parameter", "file")
    check_problem(send(http, MAP, CSV, input_file_id="file-none"), 400, "invalid_value", "input_file_id")
    check_problem(send(http, MAP, CSV, priority="high"), 400, "invalid_type", "priority")
    check_problem(send(http, PREVIEW, CSV, sample="99"), 400, "invalid_value", "sample")
    check_problem(send(http, MAP, b"text\n" + b"x\n" * 200_000), 413, "file_too_large", "file")
    check_problem(http.post(MAP, json={"mapping": {**TEXT, "prompt": "x" * 150_000}}), 413, "request_too_large")
