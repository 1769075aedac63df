"""Attacks through browsers, pickled messages and symlinks have no effect."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path

import pytest
import redis

from cli.stack.services import running_queue
from core.files.directory import DirectoryStore
from core.ids import BATCH, FILE, new_id
from core.queue.names import CLERK_QUEUE, PREPARE
from tests.support.guarded import Guarded
from tests.support.stack import batch_lines, start_batch, wait_for, write_lines

EVIL = "https://evil.example"


def test_no_other_origin_may_read_a_response(secured: Guarded) -> None:
    preflight_headers = {
        "origin": EVIL,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    for path in ("/v1/chat/completions", "/v1/files", "/v1/models", "/readyz"):
        preflight = secured.owner.http.options(path, headers=preflight_headers)
        plain = secured.owner.http.get(path, headers={"origin": EVIL})
        assert preflight.status_code == 405
        for answer in (preflight, plain):
            assert not [name for name in answer.headers if name.startswith("access-control")], path


def test_no_cookie_is_set_or_accepted(secured: Guarded) -> None:
    with secured.http(None) as http:
        refused = http.get("/v1/models", headers={"cookie": f"authorization=Bearer {secured.owner.text}"})
    assert refused.status_code == 401
    assert "set-cookie" not in secured.owner.http.get("/v1/models").headers


class Bomb:
    """An object that creates the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self._mark), os.O_CREAT | os.O_WRONLY)


def message(body: bytes, content_type: str, task: str = PREPARE) -> str:
    """Return a message in the format of Celery's Redis transport."""
    delivery = {"exchange": "", "routing_key": CLERK_QUEUE}
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if content_type == "application/json" else "binary",
            "content-type": content_type,
            "headers": {"task": task, "id": "1", "root_id": "1", "lang": "py"},
            "properties": {
                "correlation_id": "1",
                "delivery_mode": 2,
                "delivery_tag": "1",
                "body_encoding": "base64",
                "delivery_info": delivery,
            },
        }
    )


def test_a_pickled_message_is_not_run_and_the_next_message_is_served(secured: Guarded, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    os.close(pickle.loads(pickle.dumps(Bomb(tmp_path / "works"))))
    assert (tmp_path / "works").exists(), "unpickling it does create the file"
    clerk = secured.process.find("workers.consumers.main", "clerk").pid
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    url = running_queue(secured.process.state_dir)
    with redis.Redis.from_url(url or "") as client:
        queue = f"millrace:{CLERK_QUEUE}"
        client.lpush(queue, message(pickle.dumps(((Bomb(mark),), {}, embed)), "application/x-python-serialize"))
        client.lpush(queue, message(json.dumps([[str(mark)], {}, embed]).encode(), "application/json", "os.system"))
        client.lpush(queue, message(json.dumps([["../../etc/passwd"], {}, embed]).encode(), "application/json"))
        client.lpush(queue, message(json.dumps([[new_id(BATCH)], {}, embed]).encode(), "application/json"))
        wait_for(lambda: client.llen(queue) == 0, "all messages are consumed")
    key = secured.owner
    batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", batch_lines(2)))
    wait_for(lambda: key.client.batches.retrieve(batch_id).status == "completed", "the batch completes")
    assert not mark.exists()
    assert secured.process.find("workers.consumers.main", "clerk").pid == clerk, "the clerk did not restart"


def test_a_symlink_in_place_of_a_stored_file_is_not_followed(tmp_path: Path) -> None:
    store, outside = DirectoryStore(tmp_path / "store"), tmp_path / "outside"
    outside.write_text("private")
    file_id = new_id(FILE)
    place = store.path(file_id)
    place.parent.mkdir()
    place.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        store.open(file_id)
    with store.write(file_id) as stream:
        stream.write(b"new content")
    assert outside.read_text() == "private"
    assert not place.is_symlink(), "the link was replaced, not written through"
    assert store.path(file_id).stat().st_mode & 0o077 == 0
