"""Model follower: connects a consumer to the engines that its launcher lists, and lets go of those that leave.

    (listed) ──> CONNECTING ──the engine answers──> SERVING ──> RETIRING ──nothing of it runs──> (let go)
                     └──────────────────retired──────────────────^

Only the thread of the link uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from core.failpoints import Point, failpoint
from core.models.model_files import ModelConfig
from engine.process.client import EngineClient
from workers.consumers.base import ModelConsumer
from workers.context import ServedModel
from workers.residency.link import HeldModel, LinkedModel, Mode

log = structlog.get_logger()


@dataclass(slots=True)
class _Connection:
    listed: LinkedModel
    engine: EngineClient
    mode: Mode = Mode.SERVING
    is_added: bool = False


class ModelFollower:
    """The models of one consumer, whose engines know it as `client`. `on_change` is called when one was added or removed."""

    def __init__(
        self,
        consumer: ModelConsumer,
        client: str,
        on_change: Callable[[], None] = lambda: None,
        connect: Callable[[str, str], EngineClient] = EngineClient,
    ) -> None:
        self._consumer = consumer
        self._client = client
        self._on_change = on_change
        self._connect = connect
        self._connections: dict[str, _Connection] = {}  # by name; another load of a model waits until it is let go

    def apply(self, models: list[LinkedModel]) -> None:
        """Retire what is not to be served any more, and connect to what is new."""
        listed = {each.load_id: each for each in models}
        for connection in self._connections.values():
            present = listed.get(connection.listed.load_id)
            self._retire(connection, Mode.ABORTING if present is None else present.mode)
        for each in models:
            if each.mode is Mode.SERVING and each.name not in self._connections:
                self._connections[each.name] = _Connection(each, self._connect(each.endpoint, self._client))
        self._consumer.control.reconcile()

    def advance(self) -> bool:
        """Add models whose engine has answered, and let go of retired ones; return whether any comes or goes."""
        for name, connection in list(self._connections.items()):
            if connection.mode is not Mode.SERVING:
                self._try_let_go(name, connection)
            elif not connection.is_added and connection.engine.info is not None:
                self._add(connection)
        return any(each.mode is not Mode.SERVING or not each.is_added for each in self._connections.values())

    def held(self) -> list[HeldModel]:
        """The models that take work, and those that are not let go yet."""
        return [
            HeldModel(
                load_id=each.listed.load_id,
                num_running=self._consumer.num_running(name) if each.is_added else 0,
                num_begun=self._consumer.num_begun(name) if each.is_added else 0,
            )
            for name, each in self._connections.items()
            if each.is_added or each.mode is not Mode.SERVING
        ]

    def _add(self, connection: _Connection) -> None:
        listed = connection.listed
        model = ModelConfig.model_validate_json(listed.config)
        self._consumer.add_model(ServedModel(model=model, engine=connection.engine, model_hash=listed.model_hash))
        connection.is_added = True
        log.info("model_added", model=listed.name)
        self._on_change()

    def _retire(self, connection: _Connection, mode: Mode) -> None:
        if mode is Mode.SERVING or mode is connection.mode or connection.mode is Mode.ABORTING:
            return
        if connection.is_added:
            self._consumer.retire_model(connection.listed.name, abort=mode is Mode.ABORTING)
        connection.mode = mode  # an error above is repeated with the next set
        failpoint(Point.RETIRE_DRAINING)

    def _try_let_go(self, name: str, connection: _Connection) -> None:
        if connection.is_added:
            if self._consumer.num_running(name):
                return
            self._consumer.remove_model(name)
        del self._connections[name]
        connection.engine.close()
        failpoint(Point.RETIRE_LET_GO)
        log.info("model_removed", model=name)
        self._on_change()
