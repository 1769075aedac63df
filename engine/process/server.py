"""Engine server: the engine process, `python -m engine.process.server CONFIG` with an `EngineConfig` as JSON.

It has two Unix sockets in the directory `endpoint`: `submit.sock` (PULL, owned by the input processor's thread, which renders
and tokenises) and `output.sock` (ROUTER, owned by the loop's thread, so that outputs change no thread).
Exit codes are in `engine.process.exit_codes`. SIGTERM ends it at once, since it has no state to save.
"""

from __future__ import annotations

import gc
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from engine.backends.base import Backend
from engine.backends.fake.backend import FakeBackend, FakeDecoder, FakeEmbedder
from engine.backends.llama.openmp import Cores, bind_threads, bound_spinning
from engine.backends.vocabularies import not_installed
from engine.config import BackendKind, EngineConfig, KvLayout, Tuning
from engine.embedding import check_dimensions, encode_inputs
from engine.errors import DecodeFailed, EngineError, InvalidPrompt, ModelFailed, ModelMissing
from engine.inputs.input_processor import InputProcessor
from engine.inputs.prompt_encoder import PromptEncoder
from engine.log import log_stderr
from engine.loop import AddEmbedding, AddRequest, CancelRequests, Command, EngineLoop, Output, RunInLoop, StartStreaming
from engine.process.cpu_turn import open_turn
from engine.process.exit_codes import Exit, abort_process
from engine.process.inflight_log import InflightLog, Section
from engine.process.protocol import (
    Cancel,
    EngineInfo,
    EngineSettings,
    Hello,
    HelloReply,
    Outputs,
    StreamRequest,
    Submit,
    Tick,
    ToEngine,
)
from engine.process.sockets import OutputSocket, bind_submit_socket
from engine.process.watchdog import Watchdog
from engine.structured.compiler import GrammarCompiler
from engine.tuning.store import Attempts, write_tuning
from engine.tuning.tuner import Tuner, new_tuner
from engine.types import AnyRequest, ChatPrompt, EmbedRequest, Failed, ForwardRequest, RequestKey

TICK_SECONDS: Final = 0.5
IDLE_TICK_SECONDS: Final = 2.0
_COLLECTED_AFTER: Final = (50_000, 20, 100)  # objects: a group of requests makes thousands, which are no garbage


class Server:
    """An engine loop with its sockets, input processor, queues of long inputs, and watchdog."""

    def __init__(self, backend: Backend, config: EngineConfig) -> None:
        self._config = config
        self._backend = backend
        self._boot_id = secrets.token_hex(8)
        self._clients: set[str] = set()
        encoder = PromptEncoder(backend.tokenizer, template=config.chat_template, context_size=config.context_size)
        self._grammars = GrammarCompiler(
            backend.grammar_tokenizer, num_vocab=backend.tokenizer.num_vocab, jump_forward=config.jump_forward
        )
        self._input_processor = InputProcessor(
            encoder, self._grammars, stopwords=config.stopwords, context_size=config.context_size
        )
        self._is_ready_for_grammars = (
            False  # prepared when it is first idle: requests that it was loaded for come first
        )
        self._submitted = threading.Event()
        self._queues = {Section.COMPILE: InputQueue("compile-queue"), Section.EMBED: InputQueue("embed-queue")}
        warning = _warning(config, backend, encoder)
        if warning is not None:
            log_stderr(f"{warning}\n")
        tuner = _tuner(backend, config)
        self._info = EngineInfo(
            model=config.model,
            build=backend.decoder.build,
            context_size=config.context_size,
            slots=backend.decoder.slots,
            num_vocab=backend.tokenizer.num_vocab,
            template_hash=encoder.templates.hash,
            warning=warning,
            settings=None
            if backend.lab is None
            else _settings(config, backend.decoder.slots, is_measuring=tuner is not None),
        )
        folder = Path(config.endpoint)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._output = OutputSocket(folder)
        self._inflight_log = InflightLog(folder, self._boot_id)
        self.engine = EngineLoop(
            backend,
            config,
            self._emit,
            record_inflight=partial(self._inflight_log.record, Section.STEP),
            turn=open_turn(config.turn_key),
            tuner=tuner,
            on_tuned=self._on_tuned,
        )

    def prepare(self) -> None:
        """Start the watchdog and measure the speed of the model; raises ModelFailed if it cannot decode."""
        Watchdog(lambda: self.engine.progress.current, self._config.hang_seconds).start()
        try:
            self.engine.warm_up()
        except DecodeFailed as error:
            raise ModelFailed(str(error)) from None

    def run(self) -> None:
        """Serve until the process ends, after `prepare`."""
        for name, work, code in (
            ("input-processor", self._receive_messages, Exit.INPUT_FAILED),
            ("ticks", self._send_ticks, Exit.FAILED),
        ):
            threading.Thread(target=partial(_run_or_abort, work, code), name=name, daemon=True).start()
        _run_or_abort(self.engine.run, Exit.FAILED)

    def _receive_messages(self) -> None:
        """Run the thread of the input processor: receive messages and process their requests."""
        socket = bind_submit_socket(self._folder)
        decoder = msgspec.msgpack.Decoder(ToEngine)
        while True:
            try:
                self._dispatch(decoder.decode(socket.recv()))
            except msgspec.MsgspecError as error:
                log_stderr(f"dropped an invalid message: {error}\n")

    def _dispatch(self, message: ToEngine) -> None:
        match message:
            case Hello(client=client):
                self._reply_hello(client)
            case Submit(boot_id=boot_id) if boot_id == self._boot_id:
                self._submitted.set()
                for request in message.requests:
                    self._submit(message.client, request)
            case Cancel() | StreamRequest() if message.boot_id == self._boot_id:
                command = CancelRequests if isinstance(message, Cancel) else StartStreaming
                for request_id in message.request_ids:
                    put = partial(self.engine.inbox.put, command(message.client, [request_id]))
                    if not any(queue.run_after((message.client, request_id), put) for queue in self._queues.values()):
                        put()

    def _submit(self, client: str, request: AnyRequest) -> None:
        section = _section(request)
        process = partial(self._process, client, request, section)
        if section is Section.INPUT:
            process()
        else:
            self._queues[section].put((client, request.id), process)

    def _process(self, client: str, request: AnyRequest, section: Section) -> None:
        """Do the work for a request that does not need the loop's thread, then pass it to the loop."""
        try:
            self._inflight_log.record(section, [(client, request.id)])
            self.engine.inbox.put(self._command(client, request))
        except MemoryError:
            abort_process(Exit.MEMORY, "out of memory")
        except EngineError as error:
            self._reject(client, request.id, error)
        except Exception:  # one request must not end the thread of all others
            log_stderr(f"request {request.id} failed: {traceback.format_exc()}")
            self._reject(client, request.id, EngineError())
        finally:
            self._inflight_log.record(section, [])

    def _reject(self, client: str, request_id: str, error: EngineError) -> None:
        self.engine.inbox.put(RunInLoop(partial(self._emit, client, [Failed.from_error(request_id, error)])))

    def _command(self, client: str, request: AnyRequest) -> Command:
        """Convert a request to a command for the loop; raises an EngineError."""
        if isinstance(request, ForwardRequest):
            raise InvalidPrompt("This engine computes by itself; it forwards no requests.", param="model")
        if isinstance(request, EmbedRequest):
            if (embedder := self._backend.embedder) is None:
                raise InvalidPrompt("This model does not embed. Set `embeddings: true` in its file.", param="model")
            check_dimensions(request, embedder.dimensions)
            return AddEmbedding(client, request, encode_inputs(request, self._backend.tokenizer, embedder.max_tokens))
        if not self._info.slots:
            raise InvalidPrompt("This model embeds only; it does not generate text.", param="model")
        return AddRequest(self._input_processor.process(client, request))

    def _reply_hello(self, client: str) -> None:
        if self._output.send(client, HelloReply(boot_id=self._boot_id, info=self._info)):
            self._clients.add(client)

    def _on_tuned(self, tuning: Tuning | None, *, is_kept: bool) -> None:
        """Keep the result of the measurement, and tell the clients what serves now."""
        slots, lab = self._backend.decoder.slots, self._backend.lab
        config = self._config if lab is None else msgspec.structs.replace(lab.config, tuning=tuning)
        self._info = msgspec.structs.replace(
            self._info, slots=slots, settings=_settings(config, slots, is_measuring=False)
        )
        for client in list(self._clients):
            self._reply_hello(client)
        if tuning is not None and is_kept:
            try:
                write_tuning(Path(self._config.tuning_path), tuning)
            except OSError as error:
                log_stderr(f"the speed of the model was measured, and will be again: {error}\n")

    def _emit(self, client: str, items: list[Output]) -> None:
        self._output.send(client, Outputs(boot_id=self._boot_id, items=items))

    def _send_ticks(self) -> None:
        """Run the thread of the heartbeat, which goes on during a step of any length; the watchdog ends a hung one.

        An engine at rest sends one only every `IDLE_TICK_SECONDS`, until a request arrives.
        """
        last: Tick | None = None
        is_idle = False
        while True:
            if not is_idle or self._submitted.wait(IDLE_TICK_SECONDS):
                time.sleep(TICK_SECONDS)
            self._submitted.clear()
            tick = self._tick()
            is_idle, last = tick == last and not (tick.num_running or tick.num_waiting or tick.num_embeddings), tick

    def _tick(self) -> Tick:
        """Send a heartbeat to every client; drop disconnected clients and cancel their requests."""
        scheduler = self.engine.scheduler
        counts, memory = scheduler.counts, scheduler.memory_use()
        tick = Tick(
            boot_id=self._boot_id,
            num_steps=self.engine.num_steps,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_embeddings=self.engine.num_embeddings,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            output_tokens=counts.output,
            kv_tokens=memory.held,
            kv_reusable_tokens=memory.reusable,
            kv_total_tokens=memory.total,
        )
        for client in list(self._clients):
            if not self._output.send(client, tick):
                self._clients.discard(client)
                self.engine.inbox.put(CancelRequests(client, None))
        if not (self._is_ready_for_grammars or scheduler.num_running or scheduler.num_waiting):
            self._is_ready_for_grammars = True
            self._queues[Section.COMPILE].submit(self._grammars.prepare)
        return tick


class InputQueue:
    """Processes requests that may take a second, with a grammar or many inputs, on its own thread in order of arrival."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._waiting: set[RequestKey] = set()  # added by the input processor's thread, removed by the queue's

    def put(self, key: RequestKey, process: Callable[[], None]) -> None:
        """Queue a request."""
        self._waiting.add(key)
        self._pool.submit(self._run, key, process)

    def submit(self, action: Callable[[], None]) -> None:
        """Run an action after the requests in the queue."""
        self._pool.submit(action)

    def run_after(self, key: RequestKey, action: Callable[[], None]) -> bool:
        """Run an action on a request after its processing; False, and nothing, if it is not in the queue."""
        if key not in self._waiting:
            return False
        self._pool.submit(action)
        return True

    def _run(self, key: RequestKey, process: Callable[[], None]) -> None:
        try:
            process()
        finally:
            self._waiting.discard(key)


def _tuner(backend: Backend, config: EngineConfig) -> Tuner | None:
    """The tuner of a model that has settings to measure, and that was not measured before."""
    if backend.lab is None or not config.tuning_path or config.tuning is not None:
        return None
    if Attempts(Path(config.tuning_path)).are_too_many:
        log_stderr("the speed of the model is not measured: engines have ended while they did that\n")
        return None
    return new_tuner(backend.lab, config)


def _settings(config: EngineConfig, slots: int, *, is_measuring: bool) -> EngineSettings:
    tuning = config.tuning
    decode = prompt = None
    if tuning is not None:
        decode = max((rows / seconds for rows, seconds in tuning.row_seconds if rows <= slots), default=None)
        prompt = max((tokens / seconds for tokens, seconds in tuning.prompt_seconds), default=None)
    return EngineSettings(
        kv_layout=KvLayout.UNIFIED if config.kv_layout is KvLayout.UNIFIED else KvLayout.SPLIT,
        flash_attention=config.flash_attention,
        ubatch_tokens=config.ubatch_tokens,
        speculation=config.speculation,
        is_measuring=is_measuring,
        decode_speed=decode and round(decode, 1),
        prompt_speed=prompt and round(prompt, 1),
        depth=None if tuning is None else tuning.depth,
    )


def _run_or_abort(work: Callable[[], None], code: Exit) -> None:
    """Run the work of a thread that the process depends on; abort the process if it raises."""
    try:
        work()
    except MemoryError:
        abort_process(Exit.MEMORY, "out of memory")
    except BaseException:
        log_stderr(traceback.format_exc())
        abort_process(code, f"the thread {threading.current_thread().name} failed")


def _warning(config: EngineConfig, backend: Backend, encoder: PromptEncoder) -> str | None:
    """The warning of a model that chats; neither the fake nor an encoder has learned a template."""
    return encoder.templates.warning if config.backend is not BackendKind.FAKE and backend.decoder.slots else None


def _section(request: AnyRequest) -> Section:
    """The thread that processes a request."""
    if isinstance(request, ForwardRequest):
        return Section.INPUT
    if isinstance(request, EmbedRequest):
        return Section.EMBED
    has_tools = isinstance(request.prompt, ChatPrompt) and bool(request.prompt.tools)
    return Section.COMPILE if has_tools or request.constraint is not None else Section.INPUT


def load_backend(config: EngineConfig) -> Backend:
    """Load the model that the config names; raises ModelFailed."""
    return _LOADERS[config.backend](config)


def _load_fake(config: EngineConfig) -> Backend:
    time.sleep(config.load_seconds)
    spare = max(1, config.slots // 4) if config.spare_slots is None else config.spare_slots
    decoder = FakeDecoder(config.step_seconds, slots=config.slots, spare_slots=spare)
    return FakeBackend(decoder, embedder=FakeEmbedder(config.context_size) if config.embeddings else None)


def _load_llama(config: EngineConfig) -> Backend:
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # otherwise an abort runs gdb on a process that holds prompts
    with _openmp(config.cores) as cores:
        from engine.backends.llama.backend import LlamaBackend  # imported only where llama.cpp is used
    return LlamaBackend(msgspec.structs.replace(config, cores=cores))


def _load_transformers(config: EngineConfig) -> Backend:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of its own for a prompt that takes microseconds
    try:
        with _openmp(config.cores):
            from engine.backends.transformers.backend import TransformersBackend  # imported only where torch is used
    except ImportError as error:
        raise not_installed(error) from None
    return TransformersBackend(config)


def _load_nothing(_: EngineConfig) -> Backend:
    raise ModelFailed("The backend openai computes nothing here; its process is engine.upstream.server.")


_LOADERS: Final[dict[BackendKind, Callable[[EngineConfig], Backend]]] = {
    BackendKind.FAKE: _load_fake,
    BackendKind.LLAMA: _load_llama,
    BackendKind.TRANSFORMERS: _load_transformers,
    BackendKind.OPENAI: _load_nothing,
}


@contextmanager
def _openmp(cores: Cores) -> Iterator[Cores]:
    """Set up OpenMP for a library that is imported now; yield the cores that its threads are bound to."""
    cpus = os.sched_getaffinity(0)
    bound = bind_threads(os.environ, cores)
    bound_spinning(os.environ, is_bound_to_cores=bool(bound))
    yield bound
    os.sched_setaffinity(0, cpus)  # OpenMP binds the thread that loads it, and others would inherit that


def main(load: Callable[[EngineConfig], Backend] = load_backend) -> None:
    """Run the engine process."""
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    sys.setswitchinterval(0.0005)
    try:
        server = Server(load(config), config)
        server.prepare()
    except ModelFailed as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(Exit.NO_FILE if isinstance(error, ModelMissing) else Exit.MODEL)
    gc.set_threshold(*_COLLECTED_AFTER)  # after the load, which leaves garbage
    server.run()


if __name__ == "__main__":
    main()
