"""Extensions of OpenAI's batches, on the real stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
from openai import OpenAI

from core.error_codes import remedy
from tests.support.check import check_problem
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines


class Event(NamedTuple):
    id: str
    name: str
    data: dict[str, Any]


def begin(client: OpenAI, tmp_path: Path, lines: list[dict[str, object]]) -> str:
    return start_batch(client, write_lines(tmp_path / "in.jsonl", lines))


def get(http: httpx2.Client, path: str, **query: Any) -> Any:
    response = http.get(f"/v1/batches/{path}", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def post(http: httpx2.Client, path: str, body: Any = None) -> Any:
    response = http.post(f"/v1/batches/{path}", json=body) if body is not None else http.post(f"/v1/batches/{path}")
    assert response.status_code == 200, response.text
    return response.json()


def wait_end(http: httpx2.Client, batch_id: str) -> Any:
    over = ("completed", "failed", "cancelled", "expired")
    wait_for(lambda: get(http, batch_id)["status"] in over, f"{batch_id} has ended")
    return get(http, batch_id)


def output(http: httpx2.Client, batch_id: str, **query: Any) -> list[dict[str, Any]]:
    """Read the whole output, a page at a time."""
    found: list[dict[str, Any]] = []
    after = "0"
    while True:
        response = http.get(f"/v1/batches/{batch_id}/output", params={"after": after, **query})
        assert response.status_code == 200, response.text
        after = response.headers["x-millrace-after"]
        lines = [json.loads(line) for line in response.text.splitlines()]
        if not lines:
            return found
        found += lines


def events(http: httpx2.Client, batch_id: str, last_id: str | None = None, **query: Any) -> Iterator[Event]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with http.stream("GET", f"/v1/batches/{batch_id}/events", params=query, headers=headers) as response:
        assert response.status_code == 200
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if not line:
                yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
                fields = {}
            elif not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value


def mixed_batch(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> Any:
    """A file of ten lines, of which the third and the sixth are refused."""
    lines = batch_lines(10)
    lines[2]["body"] = {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}
    lines[5]["body"] = {"model": "fake", "messages": [{"role": "user", "content": "x" * 5000}]}
    return wait_end(http, begin(client, tmp_path, lines))


def test_lines_are_listed_filtered_and_paged(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    path = f"{mixed_batch(client, http, tmp_path)['id']}/requests"
    listed = get(http, path)
    assert [line["line"] for line in listed["data"]] == list(range(1, 11))
    assert [line["custom_id"] for line in get(http, path, status="failed")["data"]] == ["line-2", "line-5"]
    assert [line["custom_id"] for line in get(http, path, code="model_not_found")["data"]] == ["line-2"]
    assert [line["custom_id"] for line in get(http, path, q="INE-7")["data"]] == ["line-7"]
    assert get(http, path, q="%")["data"] == [], "a percent sign is itself"
    first = get(http, path, limit=4)
    assert (first["has_more"], first["last_id"]) == (True, first["data"][3]["id"])
    by_id = get(http, path, limit=4, after=first["last_id"])
    assert by_id == get(http, path, limit=4, after="line-3")
    assert [line["custom_id"] for line in by_id["data"]] == ["line-4", "line-5", "line-6", "line-7"]
    refused, done = listed["data"][2], listed["data"][3]
    assert (refused["status"], refused["error"]["code"], refused["usage"]) == ("failed", "model_not_found", None)
    assert (done["status"], done["error"], done["attempt"]) == ("completed", None, 1)
    assert done["usage"]["total_tokens"] == done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"] > 0
    assert done["finished_at"] is not None


def test_lines_are_found_by_the_text_of_their_prompt_or_answer(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    lines = batch_lines(6)
    asked = ('Äpfel & "Birnen"', "Сколько стоит жеребёнок?", "a/b\nc", "100 % sure", "日本語")
    for line, text in zip(lines, asked, strict=False):
        line["body"] = {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    path = f"{wait_end(http, begin(client, tmp_path, lines))['id']}/requests"

    def found(text: str, **query: Any) -> list[int]:
        return [line["line"] for line in get(http, path, text=text, **query)["data"]]

    spelled = ('äPFEL & "b', "СТОИТ ЖЕРЕБЁНОК", "A/B\nC", " % ", "本", "question 5?")
    assert [found(text) for text in spelled] == [[1], [2], [3], [4], [5], [6]]
    assert found("messages") == found("user") == found("fake") == [], "keys, roles and names of models are no text"
    answer = get(http, f"{path}/line-5")["response"]["choices"][0]["message"]["content"]
    assert 6 in found(answer[3:-2].upper())
    assert found("%") == [4], "a percent sign is itself"
    assert found("?", q="line-5") == [6]
    assert found("?", status="failed") == []
    assert found("?", limit=1, after_line=2) == [6]


def test_lines_are_listed_with_their_contents_from_any_line_on(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    path = f"{mixed_batch(client, http, tmp_path)['id']}/requests"
    both = get(http, path, after_line=1, limit=2, include="body,response")
    assert ([line["line"] for line in both["data"]], both["has_more"]) == ([2, 3], True)
    answered, refused = both["data"]
    whole = get(http, f"{path}/line-1")
    assert (answered["body"], answered["response"]) == (whole["body"], whole["response"])
    assert (refused["body"]["model"], refused["response"]) == ("gpt-9", None)
    (only,) = get(http, path, q="line-1", include="body", text="question")["data"]
    assert (only["body"], only["response"]) == (whole["body"], None)
    assert "body" not in get(http, path, after_line=9)["data"][0]
    assert get(http, path, after_line=10)["data"] == []
    for query, param in (
        ("after=line-1&after_line=2", "after_line"),
        ("after_line=-1", "after_line"),
        ("include=answer", "include"),
        ("text=", "text"),
        ("text=%00", "text"),
    ):
        check_problem(http.get(f"/v1/batches/{path}?{query}"), 400, "invalid_value", param)


def test_a_line_shows_what_was_asked_and_answered(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch = mixed_batch(client, http, tmp_path)
    line = get(http, f"{batch['id']}/requests/line-0")
    assert line["body"] == batch_lines(1)[0]["body"]
    (answered, *_) = result_lines(client, batch["output_file_id"])
    assert line["response"] == answered["response"]["body"]  # type: ignore[index]
    assert get(http, f"{batch['id']}/requests/{line['id']}") == line, "by its id it is the same"
    assert get(http, f"{batch['id']}/requests/line-2")["response"] is None


def read_stream(http: httpx2.Client, path: str) -> list[str]:
    with http.stream("GET", f"/v1/batches/{path}/stream") as response:
        return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]


def test_a_finished_line_streams_its_answer_at_once(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = mixed_batch(client, http, tmp_path)["id"]
    *chunks, done = read_stream(http, f"{batch_id}/requests/line-0")
    deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in json.loads(chunk)["choices"]]
    response = get(http, f"{batch_id}/requests/line-0")["response"]
    assert ("".join(deltas), done) == (response["choices"][0]["message"]["content"], "[DONE]")
    assert json.loads(chunks[-1])["usage"] == response["usage"]
    (failed,) = read_stream(http, f"{batch_id}/requests/line-2")
    assert json.loads(failed)["error"]["code"] == "model_not_found"


def test_a_running_line_is_followed_token_by_token_by_several_clients(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    batch_id = begin(client, tmp_path, batch_lines(1, "slow", max_tokens=80, ignore_eos=True))
    wait_for(lambda: get(http, batch_id)["status"] == "in_progress", "it runs")
    path = f"{batch_id}/requests/line-0"
    with ThreadPoolExecutor(2) as threads:
        streams = list(threads.map(lambda _: read_stream(http, path), range(2)))
    whole = get(http, path)["response"]
    for *chunks, done in streams:
        choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
        said = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
        assert ("".join(said), done) == (whole["choices"][0]["message"]["content"], "[DONE]")
        assert len(said) > 10
        assert json.loads(chunks[-1])["usage"] == whole["usage"]
    wait_end(http, batch_id)


def test_a_waiting_line_streams_its_answer_when_it_has_one(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = begin(client, tmp_path, batch_lines(6, "slow", max_tokens=5))
    wait_for(lambda: get(http, batch_id)["status"] == "in_progress", "it runs")
    assert read_stream(http, f"{batch_id}/requests/line-5")[-1] == "[DONE]"
    assert get(http, f"{batch_id}/requests/line-5")["status"] == "completed"
    wait_end(http, batch_id)


def test_results_are_read_while_the_batch_runs_each_once(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = begin(client, tmp_path, batch_lines(40, "slow", max_tokens=5))
    after, found, cuts = "0", [], 0
    while True:
        is_over = get(http, batch_id)["status"] == "completed"
        page = http.get(f"/v1/batches/{batch_id}/output", params={"after": after, "limit": 7})
        after = page.headers["x-millrace-after"]
        assert page.text == "" or page.text.endswith("\n")
        found += [json.loads(line) for line in page.text.splitlines()]
        cuts += bool(page.text) and not is_over
        if is_over and not page.text:
            break
    assert cuts > 0, "some were there before the end"
    batch = get(http, batch_id)
    assert sorted(found, key=lambda line: line["id"]) == sorted(
        result_lines(client, batch["output_file_id"]), key=lambda line: str(line["id"])
    )


def test_a_retry_runs_what_has_no_answer_and_merges_with_it(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    batch_id = begin(client, tmp_path, batch_lines(60, "slow", max_tokens=5))
    wait_for(lambda: get(http, batch_id)["request_counts"]["completed"] > 0, "a line is done")
    check_problem(http.post(f"/v1/batches/{batch_id}/retry"), 400, "batch_not_ended")
    client.batches.cancel(batch_id)
    parent = wait_end(http, batch_id)
    retry = post(http, f"{batch_id}/retry")
    assert (retry["parent_batch_id"], retry["status"], retry["metadata"]) == (batch_id, "validating", {"test": "yes"})
    input_lines = result_lines(client, retry["input_file_id"])
    assert len(input_lines) == parent["request_counts"]["failed"] > 0
    assert all(line in batch_lines(60, "slow", max_tokens=5) for line in input_lines)
    retries = http.get("/v1/batches", params={"parent_batch_id": batch_id}).json()["data"]
    assert [each["id"] for each in retries] == [retry["id"]]
    done = wait_end(http, retry["id"])
    assert done["request_counts"] == {"total": len(input_lines), "completed": len(input_lines), "failed": 0}
    for one in (batch_id, retry["id"]):
        merged = output(http, one, merged="true", limit=25)
        assert [line["custom_id"] for line in merged] == [f"line-{number}" for number in range(60)]
        assert {line["response"]["status_code"] for line in merged} == {200}
    assert len(output(http, batch_id)) == 60, "its own lines stay what they were"
    check_problem(http.post(f"/v1/batches/{retry['id']}/retry"), 400, "nothing_to_retry")


def test_lines_are_retried_by_name(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = mixed_batch(client, http, tmp_path)["id"]
    retry = wait_end(http, post(http, f"{batch_id}/retry", {"custom_ids": ["line-7", "line-0"]})["id"])
    assert [line["custom_id"] for line in result_lines(client, retry["output_file_id"])] == ["line-0", "line-7"]
    response = http.post(f"/v1/batches/{batch_id}/retry", json={"custom_ids": ["line-0", "other"]})
    check_problem(response, 400, "invalid_value", "custom_ids")


def test_a_paused_batch_waits_while_others_run_and_ends_when_it_is_resumed(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    batch_id = begin(client, tmp_path, batch_lines(100, "slow", max_tokens=5))
    paused = post(http, f"{batch_id}/pause")
    assert paused["paused_at"] is not None
    assert post(http, f"{batch_id}/pause")["paused_at"] == paused["paused_at"], "asking twice is asking once"
    for event in events(http, batch_id):
        if event.name == "batch.progress" and event.data["paused_at"] == paused["paused_at"]:
            if event.data["priority"] == 3:
                break
            http.patch(f"/v1/batches/{batch_id}", json={"priority": 3})
    other = wait_end(http, begin(client, tmp_path, batch_lines(20, "slow", max_tokens=5)))
    assert other["status"] == "completed"
    waiting = get(http, batch_id)
    assert waiting["status"] == "in_progress"
    assert waiting["request_counts"]["completed"] < 100
    assert waiting["eta_at"] is None
    assert post(http, f"{batch_id}/resume")["paused_at"] is None
    assert wait_end(http, batch_id)["request_counts"]["completed"] == 100
    check_problem(http.post(f"/v1/batches/{batch_id}/pause"), 400, "batch_not_pausable")
    check_problem(http.post(f"/v1/batches/{batch_id}/resume"), 400, "batch_not_pausable")


def test_a_batch_is_changed_in_whole_or_not_at_all(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = begin(client, tmp_path, batch_lines(100, "slow"))
    path = f"/v1/batches/{batch_id}"
    changed = http.patch(path, json={"priority": 7, "completion_window": "2d", "metadata": {"a": "b"}}).json()
    assert (changed["priority"], changed["completion_window"], changed["metadata"]) == (7, "2d", {"a": "b"})
    wait_for(lambda: get(http, batch_id)["in_progress_at"] is not None, "it runs")
    assert get(http, batch_id)["expires_at"] == changed["created_at"] + 2 * 86400
    assert http.patch(path, json={"metadata": None}).json()["metadata"] is None
    check_problem(http.patch(path, json={"priority": 101}), 400, "invalid_value", "priority")
    check_problem(http.patch(path, json={"completion_window": "soon"}), 400, "invalid_value", "completion_window")
    client.batches.cancel(batch_id)
    wait_end(http, batch_id)
    refused = http.patch(path, json={"priority": 1, "metadata": {"c": "d"}})
    check_problem(refused, 400, "batch_not_changeable")
    assert get(http, batch_id)["metadata"] is None
    assert http.patch(path, json={"metadata": {"c": "d"}}).json()["metadata"] == {"c": "d"}


def test_events_go_on_after_a_cut_with_nothing_lost_or_doubled(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    lines = batch_lines(40, "slow", max_tokens=5)
    lines[3]["body"] = {"model": "gpt-9", "messages": []}
    batch_id = begin(client, tmp_path, lines)
    seen: list[Event] = []
    num_cuts = 0
    while not seen or seen[-1].data.get("status") != "completed" or seen[-1].name != "batch.status":
        last_id = seen[-1].id if seen else None
        for number, event in enumerate(events(http, batch_id, last_id, lines="all")):
            seen.append(event)
            if number == 15:
                num_cuts += 1
                break
    assert num_cuts > 1
    ended = sorted(event.data["line"] for event in seen if event.name == "batch.line")
    assert ended == list(range(1, 41))
    statuses = [event.data["status"] for event in seen if event.name == "batch.status"]
    assert statuses == ["validating", "in_progress", "finalizing", "completed"]
    progress = [event.data for event in seen if event.name == "batch.progress"]
    assert progress[-1]["request_counts"] == {"total": 40, "completed": 39, "failed": 1}
    assert list(events(http, batch_id, seen[-1].id)) == [], "there is nothing after the end"


def test_only_failed_lines_are_sent_unless_all_are_requested(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    batch_id = mixed_batch(client, http, tmp_path)["id"]
    ended = [event.data for event in events(http, batch_id) if event.name == "batch.line"]
    assert [(line["custom_id"], line["code"]) for line in ended] == [
        ("line-2", "model_not_found"),
        ("line-5", "context_length_exceeded"),
    ]
    check_problem(
        http.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": "x"}),
        400,
        "invalid_value",
        "Last-Event-ID",
    )


def test_a_running_batch_shows_its_throughput_and_its_forecast(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    batch_id = begin(client, tmp_path, batch_lines(200, "slow", max_tokens=5))
    wait_for(lambda: get(http, batch_id)["eta_at"] is not None, "there is a forecast")
    batch = get(http, batch_id)
    assert batch["tokens_per_second"] > 0
    assert batch["eta_at"] >= batch["in_progress_at"]
    assert batch["will_miss_window"] is False
    client.batches.cancel(batch_id)
    ended = wait_end(http, batch_id)
    assert (ended["eta_at"], ended["will_miss_window"]) == (None, None)


def test_a_report_has_latencies_errors_and_engines(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch = mixed_batch(client, http, tmp_path)
    report = get(http, f"{batch['id']}/report")
    assert report["request_counts"] == {"total": 10, "completed": 8, "failed": 2}
    assert report["usage"] == batch["usage"]
    latency = report["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert 0 < report["device_seconds"] <= report["line_seconds"] + 0.001
    errors = {error["code"]: error for error in report["errors"]}
    assert {code: (error["lines"], error["custom_id"]) for code, error in errors.items()} == {
        "model_not_found": (1, "line-2"),
        "context_length_exceeded": (1, "line-5"),
    }
    assert errors["model_not_found"]["message"].startswith("The model 'gpt-9' does not exist")
    assert errors["context_length_exceeded"]["remedy"] == remedy("context_length_exceeded")
    assert sum(engine["lines"] for engine in report["engines"]) >= 8
    assert {engine["engine_build"] for engine in report["engines"]} == {"fake-3"}


def test_a_timeline_counts_every_line_once(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch = mixed_batch(client, http, tmp_path)
    for points in (1, 7, 500):
        timeline = get(http, f"{batch['id']}/timeline", points=points)
        buckets = timeline["data"]
        assert 1 <= len(buckets) <= points
        assert (sum(each["completed"] for each in buckets), sum(each["failed"] for each in buckets)) == (8, 2)
        assert sum(each["input_tokens"] for each in buckets) == batch["usage"]["input_tokens"]
        assert sum(each["output_tokens"] for each in buckets) == batch["usage"]["output_tokens"]
        assert {each["seconds"] for each in buckets} == {timeline["seconds"]}
    assert int(buckets[0]["at"]) == batch["in_progress_at"]
    failed = wait_end(http, begin(client, tmp_path, [{"custom_id": "x"}]))
    assert get(http, f"{failed['id']}/timeline")["data"] == [], "no line of it ran"
    for wrong in ("0", "501", "many"):
        path = f"/v1/batches/{batch['id']}/timeline?points={wrong}"
        check_problem(http.get(path), 400, "invalid_value", "points")


def test_foreign_and_unknown_ids_are_the_same_404(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    for path in ("requests", "requests/a", "requests/a/stream", "output", "events", "report", "timeline"):
        check_problem(http.get(f"/v1/batches/batch_unknown/{path}"), 404, None, "batch_id")
    for verb in ("retry", "pause", "resume"):
        check_problem(http.post(f"/v1/batches/batch_unknown/{verb}"), 404, None, "batch_id")
    check_problem(http.patch("/v1/batches/batch_unknown", json={}), 404, None, "batch_id")
    batch_id = mixed_batch(client, http, tmp_path)["id"]
    check_problem(http.get(f"/v1/batches/{batch_id}/requests/other"), 404, None, "custom_id")
    check_problem(http.get(f"/v1/batches/{batch_id}/requests?after=other"), 400, "invalid_value", "after")
    check_problem(http.get(f"/v1/batches/{batch_id}/requests?q=%00"), 400, "invalid_value", "q")
    check_problem(http.get(f"/v1/batches/{batch_id}/requests?status=lost"), 400, "invalid_value", "status")
    check_problem(http.get(f"/v1/batches/{batch_id}/output?after=x"), 400, "invalid_value", "after")


def test_the_official_client_reads_them_too(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    batch_id = mixed_batch(client, http, tmp_path)["id"]
    listed: Any = client.get(f"/batches/{batch_id}/requests", cast_to=object)
    assert len(listed["data"]) == 10
    assert client.batches.retrieve(batch_id).to_dict()["priority"] == 0


def test_a_custom_id_may_hold_what_a_path_would_cut_at(server: StackProcess, client: OpenAI, tmp_path: Path) -> None:
    names = ["a/b", "a?b#c", "ü %2F", "x/stream"]
    lines = [{**line, "custom_id": name} for line, name in zip(batch_lines(4), names, strict=True)]
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        batch_id = wait_end(http, begin(client, tmp_path, lines))["id"]
        for name in names[:3]:
            assert get(http, f"{batch_id}/requests/{quote(name, safe='')}")["custom_id"] == name
        by_id = {line["custom_id"]: line["id"] for line in get(http, f"{batch_id}/requests")["data"]}
        assert get(http, f"{batch_id}/requests/{by_id['x/stream']}")["custom_id"] == "x/stream"
