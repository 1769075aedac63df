"""Chat completions with `store: true`, with the official client."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.check import check_problem
from tests.support.stack import wait_for

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
URL = "/v1/chat/completions"


def create(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "also-fake", "messages": HELLO, "store": True, **fields})


def test_a_stored_completion_is_found_changed_and_deleted(client: OpenAI) -> None:
    made = create(client, metadata={"topic": "a"}, max_tokens=5)
    stored = client.chat.completions.retrieve(made.id)
    assert (stored.id, stored.model, stored.usage) == (made.id, "fake", made.usage)
    assert stored.choices[0].message.content == made.choices[0].message.content
    assert stored.metadata == {"topic": "a"}
    changed = client.chat.completions.update(made.id, metadata={"topic": "b", "x": "y"})
    assert changed.metadata == {"topic": "b", "x": "y"}
    assert client.chat.completions.retrieve(made.id) == changed
    deleted = client.chat.completions.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "chat.completion.deleted", True)
    for call in (
        client.chat.completions.retrieve,
        client.chat.completions.delete,
        client.chat.completions.messages.list,
    ):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_a_list_is_filtered_ordered_and_paged_also_while_it_is_deleted(client: OpenAI) -> None:
    made = [create(client, metadata={"run": "list", "n": str(n)}, max_tokens=1).id for n in range(5)]
    create(client, metadata={"run": "other"}, max_tokens=1)
    mine: Any = {"metadata": {"run": "list"}}
    completions = client.chat.completions
    assert [one.id for one in completions.list(**mine, limit=2)] == made
    assert [one.id for one in completions.list(**mine, limit=2, order="desc")] == made[::-1]
    assert [one.id for one in completions.list(**mine, model="also-fake", after=made[2])] == made[3:]
    assert [one.id for one in completions.list(metadata={"run": "list", "n": "3"})] == [made[3]]
    assert not list(completions.list(**mine, model="slow"))
    for one in completions.list(**mine, limit=2):
        completions.delete(one.id)
    assert not list(completions.list(**mine))


def test_the_messages_of_the_request_are_listed(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}, *HELLO]
    made = create(client, messages=messages, max_tokens=1)
    listed = client.chat.completions.messages.list(made.id, limit=2)
    assert listed.has_more
    every = list(listed)
    assert [(one.role, one.content) for one in every] == [("system", "Be brief."), ("user", None), ("user", "hello")]
    assert [part.to_dict() for part in every[1].content_parts or []] == parts
    last = client.chat.completions.messages.list(made.id, order="desc", limit=1)
    assert [one.id for one in last.data] == [every[-1].id]
    assert [one.id for one in client.chat.completions.messages.list(made.id, after=every[1].id)] == [every[2].id]


def test_a_stream_and_a_job_are_stored_too_and_nothing_else_is(client: OpenAI, http: httpx2.Client) -> None:
    chunks = list(create(client, stream=True, max_tokens=3))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert client.chat.completions.retrieve(chunks[0].id).choices[0].message.content == text
    job = http.post("/v1/jobs", json={"model": "fake", "messages": HELLO, "store": True}).json()
    wait_for(lambda: http.get(f"{URL}/{job['id']}").status_code == 200, "the job is answered")
    for store in (False, None):
        unkept = create(client, store=store, metadata={"a": "b"}, max_tokens=1)
        check_problem(http.get(f"{URL}/{unkept.id}"), 404, None, "completion_id")


def test_wrong_metadata_and_queries_name_the_field(http: httpx2.Client) -> None:
    body = {"model": "fake", "messages": HELLO, "max_tokens": 1}
    for metadata in ({"a": 1}, [], "a", {str(n): "x" for n in range(17)}, {"k" * 65: "x"}):
        check_problem(
            http.post(URL, json={**body, "store": True, "metadata": metadata}), 400, "invalid_value", "metadata"
        )
        assert http.post(URL, json={**body, "metadata": metadata}).status_code == 200, "without store it has no effect"
    made = http.post(URL, json={**body, "store": True}).json()["id"]
    check_problem(http.post(f"{URL}/{made}", json={}), 400, "missing_required_parameter", "metadata")
    assert http.post(f"{URL}/{made}", json={"metadata": None}).json()["metadata"] == {}
    for query in ("limit=0", "limit=101", "order=up", "after=chatcmpl-x", "model=%00", "metadata[a]=%00"):
        check_problem(http.get(f"{URL}?{query}"), 400, "invalid_value", query.partition("=")[0].partition("[")[0])
