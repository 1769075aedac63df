"""`millrace map`, as typed against a running server."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from pathlib import Path

from cli.client import Client
from tests.support.command import Terminal
from tests.support.halting_proxy import HaltingProxy, Moment
from tests.support.stack import StackProcess

LABELS = "category: billing|shipping, amount: number?"


def write_csv(path: Path, texts: list[str]) -> Path:
    lines = [f'{number};"{text}"' for number, text in enumerate(texts, 1)]
    path.write_text("\r\n".join(["id;text", *lines, ""]), newline="")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter=";"))


def asked(server: StackProcess, part: str) -> list[str]:
    """Return the custom_ids of all requests whose prompt contains a text, over all batches of the server."""
    with Client(f"{server.url}/v1", "any") as client:
        files = [batch["input_file_id"] for batch in client.pages("/batches", q="in.csv", limit=100)]
        return [
            json.loads(line)["custom_id"]
            for each in files
            for line in client.content_lines(each)
            if part.encode() in line
        ]


def test_rows_get_labels_and_keep_their_bytes(terminal: Terminal, server: StackProcess) -> None:
    source = write_csv(terminal.folder / "in.csv", ["Late parcel", 'He said ""no""', "Two\nlines", "Late parcel"])
    options = ("--model", "fake", "--prompt", "Label one: {text}", "--schema", LABELS)
    done = terminal.run("map", "in.csv", "-o", "out.csv", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("4 rows: 4 answered → out.csv\n")
    output = (terminal.folder / "out.csv").read_bytes().decode()
    assert output.startswith("id;text;category;amount;error\r\n")
    records = source.read_bytes().decode().split("\r\n")[1:-1]
    assert all(f"\r\n{record};" in output for record in records)
    rows = list(csv.DictReader(output.splitlines(keepends=True), delimiter=";"))
    assert all(row["category"] in ("billing", "shipping") and not row["error"] for row in rows)
    assert rows[0]["category"] == rows[3]["category"]
    assert len(asked(server, "Label one")) == 3, "equal rows share a request"
    batch = terminal.json("batch", "list", "--limit", "1")[0]
    assert batch["metadata"]["name"] == "in.csv"


def test_the_same_command_sends_nothing_again_unless_it_is_told_to(terminal: Terminal, server: StackProcess) -> None:
    write_csv(terminal.folder / "in.csv", ["a", "b", "c"])
    command = ("map", "in.csv", "--model", "fake", "--prompt", "Again: {text}", "--max-tokens", "200")
    first = terminal.json(*command, "-o", "one.csv", "--limit", "2")
    assert (first["requests"], first["left_out"], len(first["batches"])) == (2, 1, 1)
    second = terminal.json(*command, "-o", "two.csv")
    assert (second["requests"], second["answered"]) == (1, 3)
    third = terminal.json(*command, "-o", "three.csv")
    assert (third["requests"], third["batches"]) == (0, [])
    assert (terminal.folder / "three.csv").read_bytes() == (terminal.folder / "two.csv").read_bytes()
    for number in (4, 5):
        assert terminal.json(*command, "-o", f"{number}.csv", "--fresh")["requests"] == 3
    assert len(asked(server, "Again: ")) == 9


def test_an_existing_output_is_replaced_only_on_demand(terminal: Terminal, server: StackProcess) -> None:
    write_csv(terminal.folder / "in.csv", ["a"])
    (terminal.folder / "out.csv").write_text("mine")
    command = ("map", "in.csv", "--model", "fake", "--prompt", "Kept: {text}", "-o")
    refused = terminal.run(*command, "out.csv")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    same = terminal.run(*command, "in.csv", "--force")
    assert (same.returncode, "is the input file" in same.stderr) == (2, True)
    assert not asked(server, "Kept: "), "refused before anything is asked"
    assert terminal.run(*command, "out.csv", "--force").returncode in (0, 3)
    assert (terminal.folder / "out.csv").read_text() != "mine"


def test_an_update_asks_new_and_changed_rows_and_keeps_the_others(terminal: Terminal) -> None:
    write_csv(terminal.folder / "in.csv", ["a", "b", "c"])
    command = ("map", "in.csv", "-o", "out.csv", "--model", "fake", "--prompt", "Update: {text}", "--schema", LABELS)
    terminal.ask(*command, "--update")
    (before, *others) = read_csv(terminal.folder / "out.csv")
    by_hand = "billing" if before["category"] == "shipping" else "shipping"
    edited = (terminal.folder / "out.csv").read_bytes().replace(before["category"].encode(), by_hand.encode(), 1)
    (terminal.folder / "out.csv").write_bytes(edited)
    write_csv(terminal.folder / "in.csv", ["a", "B", "c", "d"])
    report = terminal.json(*command, "--update")
    assert (report["kept"], report["requests"], report["answered"]) == (2, 2, 2)
    rows = read_csv(terminal.folder / "out.csv")
    assert rows[0] == {**before, "category": by_hand}
    assert (rows[2], [row["text"] for row in rows]) == (others[1], ["a", "B", "c", "d"])


def test_failed_rows_have_their_reason_an_exit_code_and_another_chance(
    terminal: Terminal, server: StackProcess
) -> None:
    write_csv(terminal.folder / "in.csv", ["short", "long " * 2000, "also short"])
    command = ("map", "in.csv", "-o", "out.csv", "--model", "fake", "--prompt", "Fail: {text}", "--schema", LABELS)
    done = terminal.run(*command)
    assert done.returncode == 3, done.stderr
    assert "3 rows: 2 answered, 1 failed → out.csv" in done.stdout
    assert "1 row failed: context_length_exceeded: " in done.stdout
    errors = [row["error"] for row in read_csv(terminal.folder / "out.csv")]
    assert [bool(error) for error in errors] == [False, True, False]
    again = terminal.run(*command, "--update", "--json")
    assert (again.returncode, json.loads(again.stdout)["kept"]) == (3, 2)
    assert len(asked(server, "Fail: long")) == 2


def test_more_requests_than_a_batch_may_have_make_several(terminal: Terminal) -> None:
    write_csv(terminal.folder / "in.csv", [f"row {number}" for number in range(25)])
    command = (
        "map",
        "in.csv",
        "-o",
        "out.csv",
        "--model",
        "fake",
        "--prompt",
        "Several: {text}",
        "--json",
        "--priority",
    )
    done = terminal.run(*command, "7", MILLRACE_BATCH_LINES="10")
    report = json.loads(done.stdout)
    batches = [terminal.json("batch", "show", each) for each in report["batches"]]
    assert [batch["request_counts"]["total"] for batch in batches] == [10, 10, 5]
    assert {batch["priority"] for batch in batches} == {7}
    assert [row["id"] for row in read_csv(terminal.folder / "out.csv")] == [str(number) for number in range(1, 26)]


def test_a_dry_run_shows_prompts_columns_and_tokens_and_asks_nothing(terminal: Terminal, server: StackProcess) -> None:
    write_csv(terminal.folder / "in.csv", ["Late parcel", "", "Refund"])
    command = ("map", "in.csv", "--prompt", "Dry: {text}", "--system", "Be brief.", "--schema", LABELS, "--dry-run")
    shown = terminal.ask(*command, "--model", "fake")
    assert "Row 1\n  system     Be brief.\n  user       Dry: Late parcel\nRow 3\n" in shown
    assert "New columns: category (billing|shipping), amount (number), error (string)\n" in shown
    assert "3 rows: 2 with a request, 1 left out\n2 requests to send\n" in shown
    assert "prompt tokens" in shown
    assert not asked(server, "Dry: ")
    report = terminal.json(*command, "--model", "fake")
    assert [row["body"]["messages"][1]["content"] for row in report["sample"]] == ["Dry: Late parcel", "Dry: Refund"]


def test_a_table_can_come_through_a_pipe_and_go_through_one(terminal: Terminal) -> None:
    lines = '{"text": "a", "n": 1.50}\n{"text": "b"}\n'
    done = terminal.run(
        "map", "-", "-o", "-", "--model", "fake", "--embed", "{text}", "--column", "vector", stdin=lines
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert done.stdout.startswith('{"text": "a", "n": 1.50')
    assert (len(first["vector"]), first["error"], second["text"]) == (64, None, "b")
    assert "2 rows: 2 answered" in done.stderr


def test_a_mapping_that_would_fail_every_row_is_refused_at_once(terminal: Terminal, server: StackProcess) -> None:
    write_csv(terminal.folder / "in.csv", ["a", "b"])
    (terminal.folder / "schema.json").write_text(
        '{"type": "object", "properties": {"x": {"type": "string", "pattern": "(?<=a)b"}}}'
    )
    command = ("map", "in.csv", "-o", "out.csv", "--prompt", "Refused: {text}")
    for options, words in (
        (("--model", "fak"), "did you mean 'fake'?"),
        (("--model", "fake", "--schema", "schema.json"), "No row can be asked: "),
        (("--model", "fake", "--set", "temperature=9"), "No row can be asked: "),
        ((), "Name a model with --model: this server has fake, slow."),
    ):
        done = terminal.run(*command, *options)
        assert done.returncode in (1, 2), done.stdout
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not asked(server, "Refused: ")
    assert not (terminal.folder / "out.csv").exists()


def test_a_batch_that_is_stopped_leaves_its_rows_to_the_same_command_and_other_rows_alone(terminal: Terminal) -> None:
    write_csv(terminal.folder / "in.csv", [f"row {number}" for number in range(400)])
    (terminal.folder / "other").mkdir()
    write_csv(terminal.folder / "other" / "in.csv", ["another row"])
    options = ("--model", "slow", "--prompt", "Stopped: {text}", "--max-tokens", "20")
    command = ("map", "in.csv", "-o", "out.csv", *options)
    with terminal.start(*command) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if "in_progress" in line)
        (batch,) = [each for each in terminal.json("batch", "list") if each["status"] == "in_progress"]
        terminal.ask("batch", "pause", batch["id"])
        other = terminal.run("map", "other/in.csv", "-o", "other.csv", *options, "--json")
        assert json.loads(other.stdout)["requests"] == 1, "it does not wait for a batch without its rows"
        terminal.ask("batch", "cancel", batch["id"])
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "the same command asks for the others" in stderr
    assert not (terminal.folder / "out.csv").exists()
    answered = terminal.json("batch", "show", batch["id"])["request_counts"]["completed"]
    assert terminal.json(*command, "--dry-run")["requests"] == 400 - answered


def test_a_command_that_is_killed_at_any_moment_asks_for_nothing_twice(
    terminal: Terminal, server: StackProcess
) -> None:
    write_csv(terminal.folder / "in.csv", [f"row {number}" for number in range(25)])
    command = ("map", "in.csv", "-o", "out.csv", "--model", "fake", "--prompt", "Killed: {text}", "--schema", LABELS)
    moments = (
        ("POST", "/files", Moment.BODY),
        ("POST", "/files", Moment.ANSWER),
        ("POST", "/batches", Moment.BODY),
        ("POST", "/batches", Moment.ANSWER),
        ("POST", "/files", Moment.BODY),
        ("POST", "/batches", Moment.ANSWER),
        ("GET", "/batches/", Moment.ANSWER),
        ("GET", "/content", Moment.HALF),
    )
    with HaltingProxy(server.url) as proxy:
        address = ("--base-url", f"{proxy.url}/v1")
        for method, part, moment in moments:
            started: list[subprocess.Popen[str]] = []
            proxy.halt_at(method, part, moment, lambda: started[0].kill())  # noqa: B023 - called before the next turn
            started.append(terminal.start(*command, *address, MILLRACE_BATCH_LINES="10"))
            with started[0] as process:
                _, stderr = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, (method, part, moment, stderr)
            assert not (terminal.folder / "out.csv").exists()
    report = json.loads(terminal.run(*command, "--json", MILLRACE_BATCH_LINES="10").stdout)
    assert report["answered"] == 25
    requests = asked(server, "Killed: ")
    assert (len(requests), len(set(requests))) == (25, 25)
    assert [row["text"] for row in read_csv(terminal.folder / "out.csv")] == [f"row {number}" for number in range(25)]


def test_ctrl_c_says_that_the_same_command_goes_on(terminal: Terminal, server: StackProcess) -> None:
    write_csv(terminal.folder / "in.csv", ["a", "b"])
    command = ("map", "in.csv", "-o", "out.csv", "--model", "fake", "--prompt", "Ctrl-C: {text}", "--schema", LABELS)
    with HaltingProxy(server.url) as proxy:
        started: list[subprocess.Popen[str]] = []
        proxy.halt_at("GET", "/batches/", Moment.ANSWER, lambda: started[0].send_signal(signal.SIGINT))
        started.append(terminal.start(*command, "--base-url", f"{proxy.url}/v1"))
        with started[0] as process:
            _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "The same command goes on" in stderr) == (130, True)
    assert terminal.json(*command)["requests"] == 0
