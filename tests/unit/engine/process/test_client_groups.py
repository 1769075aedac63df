"""Requests that are started in a group reach the engine in one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from engine.process.client import EngineClient
from engine.process.protocol import Cancel, EngineInfo, Hello, HelloReply, StreamRequest, Submit, ToEngine
from engine.types import Request, TextPrompt

INFO = EngineInfo(model="m", build="b", context_size=64, slots=4, num_vocab=8, template_hash="")


class Sockets:
    """The sockets of an engine; the test reads each message that is no `Hello`."""

    def __init__(self, context: zmq.Context, folder: Path) -> None:
        self._submit, self._output = context.socket(zmq.PULL), context.socket(zmq.ROUTER)
        self._submit.setsockopt(zmq.RCVTIMEO, 20_000)
        self._submit.bind(f"ipc://{folder}/submit.sock")
        self._output.bind(f"ipc://{folder}/output.sock")
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode

    def greet(self) -> None:
        """Answer the client's hellos until one answer has reached it: its other socket connects by itself."""
        self._output.setsockopt(zmq.ROUTER_MANDATORY, 1)
        reply = msgspec.msgpack.encode(HelloReply(boot_id="boot", info=INFO))
        is_connected = False
        while not is_connected:
            message = self._decode(self._submit.recv())
            with suppress(zmq.ZMQError):
                self._output.send_multipart((message.client.encode(), reply))
                is_connected = True

    def next_message(self) -> Any:
        while isinstance(message := self._decode(self._submit.recv()), Hello):
            pass
        return message


class Sink:
    def on_delta(self, delta: object) -> None:
        raise AssertionError("nothing is generated")

    def on_end(self, outcome: object) -> None:
        pass


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Sockets]:
    context = zmq.Context()
    yield Sockets(context, tmp_path)
    context.destroy(linger=0)


@pytest.fixture
def client(tmp_path: Path, sockets: Sockets) -> Iterator[EngineClient]:
    client = EngineClient(str(tmp_path), "client")
    sockets.greet()
    client.wait_ready(10)
    yield client
    client.close()


def submit(client: EngineClient, *names: str) -> None:
    for name in names:
        client.submit(Request(id=name, prompt=TextPrompt(text="x")), Sink())


def ids(message: Submit) -> list[str]:
    return [request.id for request in message.requests]


def test_the_requests_of_a_group_are_one_message(client: EngineClient, sockets: Sockets) -> None:
    with client.group():
        submit(client, "a", "b", "c")
    submit(client, "d")
    assert [ids(sockets.next_message()) for _ in range(2)] == [["a", "b", "c"], ["d"]]


def test_a_group_that_an_error_ends_is_sent(client: EngineClient, sockets: Sockets) -> None:
    with pytest.raises(KeyError), client.group():
        submit(client, "a")
        raise KeyError
    assert ids(sockets.next_message()) == ["a"]


def test_a_request_is_sent_before_its_cancel_and_its_stream(client: EngineClient, sockets: Sockets) -> None:
    with client.group():
        submit(client, "a", "b")
        client.cancel("a")
        submit(client, "c")
        client.stream("c")
    messages = [sockets.next_message() for _ in range(4)]
    assert [type(message) for message in messages] == [Submit, Cancel, Submit, StreamRequest]
    assert (ids(messages[0]), ids(messages[2])) == (["a", "b"], ["c"])


def test_a_group_does_not_hold_back_another(client: EngineClient, sockets: Sockets) -> None:
    with client.group():
        submit(client, "a")
        with client.group():
            submit(client, "b")
        assert ids(sockets.next_message()) == ["a", "b"]
