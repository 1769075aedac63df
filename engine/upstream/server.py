"""Upstream server: the engine process of a model that a server computes, `python -m engine.upstream.server CONFIG`.

It has the sockets, messages and exit codes of `engine.process.server`, and one event loop instead of threads.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import uvloop
import zmq

from engine.config import EngineConfig, UpstreamConfig
from engine.errors import InvalidPrompt, ModelFailed
from engine.log import log_stderr
from engine.process.exit_codes import Exit, abort_process
from engine.process.inflight_log import InflightLog, Section
from engine.process.protocol import (
    Cancel,
    EngineInfo,
    Hello,
    HelloReply,
    Outputs,
    StreamRequest,
    Submit,
    Tick,
    ToEngine,
)
from engine.process.sockets import OutputSocket, bind_submit_socket
from engine.types import Failed, ForwardRequest
from engine.upstream.access import Access, Address, parse_address, read_access
from engine.upstream.command import HOST, CommandServer, choose_port
from engine.upstream.dispatcher import Dispatcher, Output
from engine.upstream.http_client import HttpClient
from engine.upstream.limiter import Limiter
from engine.upstream.replicas import Replica

_TICK_SECONDS: Final = 0.5
_FIRST_PROBE_SECONDS: Final = 3.0
_SETTLE_SECONDS: Final = 0.5
_BUILD: Final = "openai"


class Server:
    """The dispatcher with its sockets."""

    def __init__(self, config: EngineConfig, replicas: list[Replica], access: Access) -> None:
        upstream = _upstream(config)
        self._config = config
        self._replicas = replicas
        self._boot_id = secrets.token_hex(8)
        self._clients: set[str] = set()
        self._outbox: dict[str, list[Output]] = {}
        folder = Path(config.endpoint)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._output = OutputSocket(folder)
        self._folder = folder
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._redact = access.redact
        inflight_log = InflightLog(folder, self._boot_id)
        self._dispatcher = Dispatcher(
            replicas,
            upstream.model,
            self._emit,
            record_inflight=partial(inflight_log.record, Section.STEP),
            redact=access.redact,
            timeout_seconds=upstream.timeout_seconds,
            max_attempts=upstream.max_attempts,
            settle_seconds=_SETTLE_SECONDS if upstream.command else 0.0,
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`."""
        loop = asyncio.get_running_loop()
        self._submit = bind_submit_socket(self._folder)
        loop.add_reader(self._submit.fileno(), self._receive)
        self._receive()
        while not stopping.is_set():
            self._tick()
            if _upstream(self._config).command and self._replicas[0].silent_seconds > self._config.hang_seconds:
                abort_process(Exit.HUNG, "the server of `command` does not answer")
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _TICK_SECONDS)

    def _receive(self) -> None:
        """Handle all messages that have arrived: the socket's file descriptor reports only that there are new ones."""
        while True:
            try:
                data = self._submit.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._handle(self._decoder.decode(data))
            except msgspec.MsgspecError as error:
                log_stderr(f"dropped an invalid message: {error}\n")

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Hello(client=client):
                if self._output.send(client, HelloReply(boot_id=self._boot_id, info=self._info())):
                    self._clients.add(client)
            case Submit(boot_id=boot_id) if boot_id == self._boot_id:
                for request in message.requests:
                    if isinstance(request, ForwardRequest):
                        self._dispatcher.submit(message.client, request)
                    else:
                        error = InvalidPrompt("This engine forwards requests; it computes none.", param="model")
                        self._emit(message.client, Failed.from_error(request.id, error))
            case Cancel() if message.boot_id == self._boot_id:
                self._dispatcher.cancel(message.client, message.request_ids)
            case StreamRequest() if message.boot_id == self._boot_id:
                self._dispatcher.stream(message.client, message.request_ids)

    def _info(self) -> EngineInfo:
        warnings = [warning for replica in self._replicas if (warning := replica.warning) is not None]
        return EngineInfo(
            model=self._config.model,
            build=next((replica.build for replica in self._replicas if replica.build), _BUILD),
            context_size=self._config.context_size,
            slots=sum(replica.limiter.max_limit for replica in self._replicas),
            num_vocab=0,
            template_hash="",
            warning=self._redact(" ".join(warnings)) if warnings else None,
        )

    def _emit(self, client: str, output: Output) -> None:
        """Send an output, together with all others of this turn of the loop."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.setdefault(client, []).append(output)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for client, items in outbox.items():
            self._output.send(client, Outputs(boot_id=self._boot_id, items=items))

    def _tick(self) -> None:
        """Send a heartbeat to every client; drop disconnected clients and cancel their requests."""
        tick = Tick(
            boot_id=self._boot_id,
            num_steps=self._dispatcher.num_answers,
            num_running=self._dispatcher.num_running,
            num_waiting=self._dispatcher.num_waiting,
            prompt_tokens=self._dispatcher.num_prompt_tokens,
            cached_tokens=self._dispatcher.num_cached_tokens,
            output_tokens=self._dispatcher.num_output_tokens,
        )
        for client in list(self._clients):
            if not self._output.send(client, tick):
                self._clients.discard(client)
                self._dispatcher.cancel(client, None)


async def _serve(config: EngineConfig) -> None:
    """Start the server of `command` if there is one, then serve until SIGTERM; raises ModelFailed."""
    upstream = _upstream(config)
    access = read_access(upstream, os.environ)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.set_exception_handler(_on_error)
    if not upstream.command:
        addresses = [parse_address(url) for url in upstream.base_urls]
        await _run(config, access, [_replica(config, access, address) for address in addresses], stopping)
        return
    port = choose_port(upstream.port)
    server = CommandServer(upstream, port, access.redact, _on_server_exit)
    health = HttpClient(Address("http", HOST, port, ""), access)
    try:
        ready = asyncio.ensure_future(server.wait_ready(health))
        stop = asyncio.ensure_future(stopping.wait())
        await asyncio.wait([ready, stop], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            ready.result()
            replica = _replica(config, access, Address("http", HOST, port, "/v1"), (health, upstream.health_path))
            await _run(config, access, [replica], stopping)
    finally:
        server.stop()


async def _run(config: EngineConfig, access: Access, replicas: list[Replica], stopping: asyncio.Event) -> None:
    probed = [asyncio.Event() for _ in replicas]
    watchers = [
        asyncio.ensure_future(replica.watch(event.set)) for replica, event in zip(replicas, probed, strict=True)
    ]
    for watcher in watchers:
        watcher.add_done_callback(_on_watcher_end)
    server = Server(config, replicas, access)
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in probed)), _FIRST_PROBE_SECONDS)
    for replica in replicas:
        if replica.warning is not None:
            log_stderr(access.redact(replica.warning) + "\n")
    await server.run(stopping)
    for watcher in watchers:
        watcher.cancel()


def _replica(
    config: EngineConfig, access: Access, address: Address, health: tuple[HttpClient, str] | None = None
) -> Replica:
    upstream = _upstream(config)
    return Replica(
        f"The server at {address}",
        HttpClient(address, access),
        upstream.model,
        Limiter(asyncio.get_running_loop().time, upstream.max_concurrency),
        health=health,
        check_seconds=config.hang_seconds / 2,
    )


def _upstream(config: EngineConfig) -> UpstreamConfig:
    if config.upstream is None or not (config.upstream.base_urls or config.upstream.command):
        raise ModelFailed("A model of the backend openai needs `base_url` or `command` in its file.")
    return config.upstream


def _on_server_exit(code: int) -> None:
    abort_process(Exit.SERVER_ENDED, f"the server of `command` ended with exit code {code}")


def _on_watcher_end(watcher: asyncio.Future[None]) -> None:
    """End the process: a server that is down would stay so for ever."""
    if not watcher.cancelled():
        raise watcher.exception() or AssertionError("it never ends")


def _on_error(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """End the process if one of its own callbacks fails, since requests may then never end."""
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_stderr("".join(traceback.format_exception(error)))
    if "handle" in context:
        abort_process(Exit.FAILED, "a callback of the loop failed")


def main() -> None:
    """Run the engine process."""
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    try:
        uvloop.run(_serve(config))
    except ModelFailed as error:
        log_stderr(f"{error}\n")
        os._exit(Exit.MODEL)
    os._exit(0)  # sockets linger in daemon threads, and there is no state to save


if __name__ == "__main__":
    main()
