"""Activity: what the engines of a launcher do now, by their ticks, written to the database every two seconds while it changes.

An engine counts tokens from its start; their rates are those of the last five seconds. The heartbeat of the launcher carries the
same values, and the new tokens as counters for metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from sqlalchemy import Executable

from core.counters import CounterName
from db.workers import EngineActivity, report_activity
from engine.process.protocol import Tick
from workers.launcher.engines.engine_process import EngineProcess
from workers.launcher.engines.engine_reports import EngineReports

_RATE_SECONDS: Final = 5.0
_WRITE_SECONDS: Final = 2.0


class TokenRates:
    """Turns the ticks of one model into activities. The clock is that of the ticks, in seconds."""

    def __init__(self) -> None:
        self._ticks: deque[tuple[float, Tick]] = deque()

    def add(self, tick: Tick, at: float) -> EngineActivity:
        """Add the next tick. The first one of a boot begins anew."""
        if self._ticks and self._ticks[-1][1].boot_id != tick.boot_id:
            self._ticks.clear()
        self._ticks.append((at, tick))
        while len(self._ticks) > 2 and self._ticks[1][0] <= at - _RATE_SECONDS:
            self._ticks.popleft()
        since, first = self._ticks[0]
        seconds = at - since
        prompt, output = (
            round(number / seconds, 1) if seconds > 0 else 0.0
            for number in (tick.prompt_tokens - first.prompt_tokens, tick.output_tokens - first.output_tokens)
        )
        return EngineActivity(
            num_running=tick.num_running,
            num_waiting=tick.num_waiting,
            num_embeddings=tick.num_embeddings,
            prompt_tokens=tick.prompt_tokens,
            cached_tokens=tick.cached_tokens,
            output_tokens=tick.output_tokens,
            prompt_tokens_per_second=prompt,
            output_tokens_per_second=output,
            kv_tokens=tick.kv_tokens,
            kv_reusable_tokens=tick.kv_reusable_tokens,
            kv_total_tokens=tick.kv_total_tokens,
        )


class _Engine:
    """One load: its last ticks, and what was last written of it. `tick` is None while the engine does not answer."""

    def __init__(self) -> None:
        self.rates = TokenRates()
        self.tick: Tick | None = None
        self.counted: Tick | None = None
        self.activity: EngineActivity | None = None
        self.written: EngineActivity | None = None
        self.written_at = float("-inf")

    @property
    def is_settled(self) -> bool:
        tick = self.tick
        is_idle = tick is None or not (tick.num_running or tick.num_waiting or tick.num_embeddings)
        return is_idle and self.activity == self.written


class ActivityReporter:
    """The activities of a launcher's engines. Only its main thread calls it; `write` executes a statement in another one."""

    def __init__(self, launcher_id: str, reports: EngineReports, write: Callable[[Executable], None]) -> None:
        self._launcher_id = launcher_id
        self._reports = reports
        self._write = write
        self._engines: dict[str, _Engine] = {}  # by load

    @property
    def is_settled(self) -> bool:
        """Is all written, and does no engine compute?"""
        return all(engine.is_settled for engine in self._engines.values())

    def advance(self, engines: Iterable[EngineProcess], now: float) -> None:
        """Take over the ticks that have arrived, and write what has changed; `now` is the monotonic clock's."""
        old, self._engines = self._engines, {}
        for process in engines:
            engine = self._engines[process.load_id] = old.get(process.load_id) or _Engine()
            tick = process.client.tick
            if tick is not engine.tick:
                self._take(process.name, engine, tick, process.client.ticked_at)
            if engine.activity != engine.written and now - engine.written_at >= _WRITE_SECONDS:
                engine.written, engine.written_at = engine.activity, now
                self._write(report_activity(self._launcher_id, process.name, engine.activity))

    def _take(self, model: str, engine: _Engine, tick: Tick | None, at: float) -> None:
        engine.tick = tick
        engine.activity = None if tick is None else engine.rates.add(tick, at)
        self._reports.set_activity(model, engine.activity)
        if tick is not None:
            self._count(model, engine.counted, tick)
            engine.counted = tick

    def _count(self, model: str, last: Tick | None, tick: Tick) -> None:
        """Raise the counters by the tokens since the last tick, or since the start of the engine."""
        if last is not None and last.boot_id != tick.boot_id:
            last = None
        for name, number, before in (
            (CounterName.PROMPT_TOKENS, tick.prompt_tokens, last and last.prompt_tokens),
            (CounterName.CACHED_PROMPT_TOKENS, tick.cached_tokens, last and last.cached_tokens),
            (CounterName.GENERATED_TOKENS, tick.output_tokens, last and last.output_tokens),
        ):
            if new := number - (before or 0):
                self._reports.counters.add(name, model, new)
