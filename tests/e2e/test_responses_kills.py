"""SIGKILL under the stream of a response: the client resumes the stream, and the events add up to the stored response."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.stack import StackProcess, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

# the fake model never closes its string
LONG: Any = {"model": "fake", "input": "hello", "text": {"format": {"type": "json_object"}}, "max_output_tokens": 800}


def begin(client: OpenAI, kill: Callable[[], None]) -> list[Any]:
    """Return the events of a stream up to its end, or up to where the kill after 40 events breaks its connection."""
    events: list[Any] = []
    with suppress(openai.APIConnectionError), client.responses.create(**LONG, background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 40:
                kill()
    return events


def read_on(client: OpenAI, response_id: str, last: int) -> list[Any]:
    """Return the rest of a stream, reconnecting whenever its connection breaks."""
    events: list[Any] = []
    while not events or events[-1].type != "response.incomplete":
        try:
            with client.responses.retrieve(response_id, stream=True, starting_after=last) as stream:
                for event in stream:
                    events.append(event)
                    last = event.sequence_number
        except openai.APIConnectionError:
            wait_for(lambda: client.responses.retrieve(response_id) is not None, "the api is back")
        assert not events or events[-1].type != "error", events[-1]
    return events


@pytest.mark.parametrize("killed", [("workers.consumers.main", "chat"), ("-m api",), ("valkey-server",)], ids=str)
def test_a_background_stream_survives_a_kill_of(killed: tuple[str, ...], stack: StackProcess) -> None:
    with stack.client() as client:
        events = begin(client, lambda: stack.find(*killed).kill())
        response_id = events[0].response.id
        if events[-1].type != "response.incomplete":
            events += read_on(client, response_id, events[-1].sequence_number)
        response = client.responses.retrieve(response_id)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert response.output_text == text
    assert len(text) >= 700
    assert all(one.sequence_number < two.sequence_number for one, two in pairwise(events))
