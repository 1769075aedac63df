"""`millrace batch`, `files`, `chat` and `models`, as typed against a running server."""

from __future__ import annotations

import json
import os
import signal

from tests.support.command import Terminal
from tests.support.model_files import write_model
from tests.support.stack import batch_lines, wait_for, write_lines


def test_a_file_is_sent_shown_fetched_and_deleted(terminal: Terminal) -> None:
    path = write_lines(terminal.folder / "in.jsonl", batch_lines(3))
    file_id = terminal.ask("files", "upload", path).strip()
    assert terminal.json("files", "show", file_id)["filename"] == "in.jsonl"
    assert file_id in [file["id"] for file in terminal.json("files", "list", "--purpose", "batch")]
    assert terminal.ask("files", "download", file_id) == path.read_text()
    assert terminal.json("files", "download", file_id, "-o", "copy")["bytes"] == path.stat().st_size
    assert (terminal.folder / "copy").read_bytes() == path.read_bytes()
    assert terminal.json("files", "delete", file_id)["deleted"] is True
    gone = terminal.run("files", "show", file_id)
    assert gone.returncode == 1
    assert "404" in gone.stderr


def test_an_output_that_cannot_be_written_is_named(terminal: Terminal) -> None:
    file_id = terminal.ask("files", "upload", write_lines(terminal.folder / "in.jsonl", batch_lines(1))).strip()
    done = terminal.run("files", "download", file_id, "-o", "no/such/folder")
    assert done.returncode == 2
    assert "no/such" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_ends_a_download_quietly(terminal: Terminal) -> None:
    path = write_lines(terminal.folder / "in.jsonl", batch_lines(800))
    file_id = terminal.ask("files", "upload", path).strip()
    with terminal.start("files", "download", file_id) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert "Traceback" not in said


def test_a_file_can_come_through_a_pipe(terminal: Terminal) -> None:
    content = "".join(json.dumps(line) + "\n" for line in batch_lines(2))
    made = terminal.json("files", "upload", "-", stdin=content)
    assert (made["filename"], made["bytes"]) == ("stdin.jsonl", len(content))


def test_a_batch_is_made_watched_and_its_answers_fetched(terminal: Terminal) -> None:
    path = write_lines(terminal.folder / "in.jsonl", batch_lines(5))
    batch_id = terminal.ask("batch", "create", path, "--metadata", "team=red", "--window", "2h").strip()
    assert "completed: 5 done, 0 failed" in terminal.ask("batch", "watch", batch_id)
    batch = terminal.json("batch", "show", batch_id)
    assert (batch["metadata"], batch["completion_window"]) == ({"team": "red"}, "2h")
    answers = [json.loads(line) for line in terminal.ask("batch", "download", batch_id).splitlines()]
    assert [line["custom_id"] for line in answers] == [f"line-{n}" for n in range(5)]
    assert terminal.json("batch", "list", "--limit", "1")[0]["id"] == batch_id
    assert batch_id in terminal.ask("batch", "list")


def test_watching_as_json_is_a_line_for_each_change(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(3))
    lines = terminal.ask("batch", "create", "in.jsonl", "--watch", "--json").splitlines()
    seen = [json.loads(line)["status"] for line in lines]
    assert seen[-1] == "completed"
    assert len(set(lines)) == len(lines)


def test_failed_lines_are_an_exit_code_and_can_be_read(terminal: Terminal) -> None:
    lines = batch_lines(4)
    lines[2]["body"] = {"model": "fake"}
    write_lines(terminal.folder / "in.jsonl", lines)
    done = terminal.run("batch", "create", "in.jsonl", "--watch")
    assert done.returncode == 3
    batch_id = done.stderr.splitlines()[0]
    saved = terminal.run("batch", "download", batch_id, "-o", "out.jsonl")
    assert saved.returncode == 3
    assert saved.stderr.startswith("3 answers: out.jsonl\n1 failed line: out.errors.jsonl\n")
    assert (terminal.folder / "out.errors.jsonl").exists()
    for verb in (("download", batch_id), ("download", batch_id, "--partial")):
        refused = terminal.run("batch", *verb, "-o", "out.jsonl")
        assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert terminal.run("batch", "download", batch_id, "-o", "out.jsonl", "--force").returncode == 3
    assert terminal.ask("batch", "errors", batch_id).startswith("line-2: Missing required parameter: 'messages'.")
    error = terminal.json("batch", "errors", batch_id)
    assert (error["custom_id"], error["code"]) == ("line-2", "missing_required_parameter")


def test_a_file_that_is_no_batch_has_an_exit_code_and_a_reason(terminal: Terminal) -> None:
    (terminal.folder / "in.jsonl").write_text(json.dumps(batch_lines(1)[0]) + "\n{oops\n")
    done = terminal.run("batch", "create", "in.jsonl", "--watch", "--json")
    assert done.returncode == 4
    batch = json.loads(done.stdout.splitlines()[-1])
    assert terminal.ask("batch", "errors", batch["id"]).startswith("Line 2 is not valid JSON")


def test_a_batch_is_cancelled_and_an_early_download_refused(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(60, "slow", max_tokens=60))
    batch_id = terminal.ask("batch", "create", "in.jsonl").strip()
    early = terminal.run("batch", "download", batch_id)
    assert early.returncode == 1
    assert f"millrace batch watch {batch_id}" in early.stderr
    assert terminal.json("batch", "cancel", batch_id)["status"] in ("cancelling", "cancelled")
    assert terminal.run("batch", "watch", batch_id).returncode == 4


def test_a_paused_batch_is_listed_as_paused_and_found_by_status_and_model(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(200, "slow", max_tokens=40))
    batch_id = terminal.ask("batch", "create", "in.jsonl").strip()
    wait_for(lambda: terminal.json("batch", "show", batch_id)["status"] == "in_progress", "the batch runs")
    terminal.ask("batch", "pause", batch_id)
    assert terminal.ask("batch", "priority", batch_id, "7") == f"{batch_id} has priority 7.\n"
    (paused,) = [row for row in terminal.ask("batch", "list").splitlines() if batch_id in row]
    assert paused.split()[1] == "paused"
    assert [each["id"] for each in terminal.json("batch", "list", "--status", "paused", "--model", "slow")] == [
        batch_id
    ]
    assert terminal.json("batch", "list", "--status", "paused", "--model", "fake") == []
    assert terminal.json("batch", "list", "--status", "in_progress", "--model", "slow") == [], "it is paused"
    assert [each["id"] for each in terminal.json("batch", "list", "--search", batch_id[9:].upper())] == [batch_id]
    assert terminal.json("batch", "list", "--metadata", "no=such") == []
    wrong = terminal.run("batch", "list", "--status", "pauzed")
    assert (wrong.returncode, "did you mean 'paused'?" in wrong.stderr) == (2, True)
    assert "status    paused since" in terminal.ask("batch", "show", batch_id)
    status = terminal.ask("status")
    assert batch_id in status
    assert "ok" in status.splitlines()[0]
    found = terminal.json("status")
    assert found["is_ready"]
    assert batch_id in [batch["id"] for batch in found["batches"]]
    terminal.ask("batch", "cancel", batch_id)


def test_a_list_of_batches_fits_a_terminal_of_80_columns(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(3))
    terminal.run("batch", "create", "in.jsonl", "--watch")
    for verb in (("batch", "list"), ("models",), ("status",), ("files", "list"), ("batch", "list", "--help")):
        shown = terminal.screen(*verb)
        assert shown
        assert max(map(len, shown.splitlines())) <= 80, shown


def test_an_interrupted_watch_leaves_the_batch_and_prints_how_to_resume(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(60, "slow", max_tokens=60))
    batch_id = terminal.ask("batch", "create", "in.jsonl").strip()
    with terminal.start("batch", "watch", batch_id) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"millrace batch watch {batch_id}" in said
    assert terminal.json("batch", "cancel", batch_id)["status"] in ("cancelling", "cancelled")


def test_a_question_is_answered_as_text_or_chunks(terminal: Terminal) -> None:
    words = terminal.ask("chat", "Hello?", "--model", "fake", "--max-tokens", "20", "--system", "Be brief.")
    assert words.strip()
    assert (
        terminal.ask("chat", "-", "--model", "fake", "--max-tokens", "20", "--system", "Be brief.", stdin="Hello?\n")
        == words
    )
    lines = terminal.ask("chat", "Hello?", "--model", "fake", "--max-tokens", "20", "--json").splitlines()
    assert {json.loads(line)["object"] for line in lines} == {"chat.completion.chunk"}


def test_a_question_to_an_unknown_model_lists_the_served_models(terminal: Terminal) -> None:
    done = terminal.run("chat", "Hello?", "--model", "gpt-9")
    assert done.returncode == 1
    assert "Served models: fake, slow" in done.stderr


def test_an_answer_can_be_interrupted(terminal: Terminal) -> None:
    with terminal.start("chat", "Hello?", "--model", "slow", "--max-tokens", "1000") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_conversation_remembers_and_ends_with_ctrl_d(terminal: Terminal) -> None:
    keyboard, theirs = os.openpty()
    with terminal.start("chat", "--model", "fake", "--max-tokens", "20", stdin=theirs) as process:
        os.close(theirs)
        os.write(keyboard, b"Hello?\n\nAnd then?\n\x04")
        answers, said = process.communicate(timeout=30)
    os.close(keyboard)
    assert process.returncode == 0, said
    assert "Chatting with fake" in said
    one = terminal.ask("chat", "Hello?", "--model", "fake", "--max-tokens", "20").strip()
    two = terminal.ask("chat", "And then?", "--model", "fake", "--max-tokens", "20").strip()
    assert one in answers
    assert two not in answers, "the second question was asked with the first before it"


def test_models_are_a_table_or_json(terminal: Terminal) -> None:
    heading, *rows = [line.split() for line in terminal.ask("models").splitlines()]
    assert heading == ["NAME", "STATUS", "BACKEND", "DEVICE", "MEMORY", "CONTEXT", "SLOTS", "ENDPOINTS", "ALIASES"]
    assert [row[:2] for row in rows] == [["fake", "ready"], ["slow", "ready"]]
    assert terminal.ask("models", "list").splitlines()[0].split() == heading
    assert rows[0][-1] == "also-fake"
    assert "embeddings" in " ".join(rows[0])
    assert "embeddings" not in " ".join(rows[1])
    models = [(model["id"], model["context_size"], model["slots"]) for model in terminal.json("models")]
    assert models == [("fake", 4096, 8), ("also-fake", 4096, 8), ("slow", 2048, 2)]


def test_one_model_is_shown_by_any_of_its_names(terminal: Terminal) -> None:
    assert terminal.json("models", "show", "also-fake")["root"] == "fake"
    shown = dict(line.split(maxsplit=1) for line in terminal.ask("models", "show", "slow").splitlines())
    assert (shown["status"], shown["slots"]) == ("ready", "2")
    done = terminal.run("models", "show", "slwo")
    assert (done.returncode, "did you mean 'slow'?" in done.stderr) == (1, True)


def test_a_model_that_batches_wait_for_says_so_when_it_is_removed(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(50, "slow"))
    batch_id = terminal.json("batch", "create", "in.jsonl")["id"]
    folder = terminal.folder / "models"
    folder.mkdir()
    write_model(folder, "slow")  # not the file that the server reads
    wait_for(lambda: terminal.json("batch", "show", batch_id)["model"] == "slow", "its file is checked")
    done = terminal.run("models", "remove", "slow", "--models-dir", folder, "--json")
    assert (done.returncode, "add --yes" in done.stderr) == (2, True)
    assert batch_id in done.stderr
    answer = terminal.json("models", "remove", "slow", "--models-dir", folder, "--yes")
    assert batch_id in answer["waiting_batches"]
    assert list(folder.iterdir()) == []
    terminal.ask("batch", "cancel", batch_id)


def test_a_whole_run_can_be_read_by_a_program(terminal: Terminal) -> None:
    write_lines(terminal.folder / "in.jsonl", batch_lines(3))
    done = terminal.run("run", "in.jsonl", "-o", "out.jsonl", "--json")
    assert json.loads(done.stdout)["request_counts"]["completed"] == 3
    assert "3 of 3 lines answered" in done.stderr


def test_output_to_a_pipe_has_no_colours(terminal: Terminal) -> None:
    for verb in (("batch", "list"), ("models",), ("batch", "--help")):
        assert "\x1b" not in terminal.run(*verb, NO_COLOR="1").stdout
