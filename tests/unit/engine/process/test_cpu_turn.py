"""Turns on the cores, with real semaphores. An engine that has to wait asks again; time moves only as the test says."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import secrets
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from engine.process.cpu_turn import BATCH, CHAT, CpuTurn, Semaphores, open_turn
from engine.turn import OwnCores
from tests.support.clock import Clock

_IPC_RMID = 0
_fork = multiprocessing.get_context("fork")


class Engines:
    """Engines that share cores and a clock."""

    def __init__(self) -> None:
        self.key = secrets.randbits(30) | 1
        self.clock = Clock()
        self.semaphores = Semaphores(self.key)

    def new(self) -> CpuTurn:
        return CpuTurn(Semaphores(self.key), self.clock)

    def remove_semaphores(self) -> None:
        ctypes.CDLL(None).semctl(self.semaphores._id, 0, _IPC_RMID)


@pytest.fixture
def engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.remove_semaphores()


def test_one_engine_computes_at_a_time(engines: Engines) -> None:
    first, second = engines.new(), engines.new()
    assert first.take(is_chat=False)
    assert not second.take(is_chat=False)
    first.give_back()
    assert second.take(is_chat=False)
    assert not first.take(is_chat=True)


def test_a_turn_without_other_engines_is_kept_and_taken_again(engines: Engines) -> None:
    alone = engines.new()
    for _ in range(100):
        assert alone.take(is_chat=False)
        engines.clock.now += 0.004


def test_the_turn_is_given_up_after_some_milliseconds(engines: Engines) -> None:
    first, second = engines.new(), engines.new()
    assert first.take(is_chat=False)
    assert not second.take(is_chat=False)
    engines.clock.now += 0.004
    assert first.take(is_chat=False)
    engines.clock.now += 0.04
    assert not first.take(is_chat=False)
    assert second.take(is_chat=False)


def test_equals_come_one_after_the_other(engines: Engines) -> None:
    members = [engines.new() for _ in range(4)]
    order: list[int] = []
    while len(order) < 40:
        for number, member in enumerate(members):
            if member.take(is_chat=False) and order[-1:] != [number]:
                order.append(number)
        engines.clock.now += 0.04
    assert {order.count(number) for number in range(4)} == {10}


def test_the_next_engine_stays_the_next_while_it_reads_its_inbox(engines: Engines) -> None:
    first, second, third = engines.new(), engines.new(), engines.new()
    assert first.take(is_chat=False)
    for _ in range(3):
        assert not second.take(is_chat=False)
        assert not third.take(is_chat=False)
    first.give_back()
    assert not third.take(is_chat=False)
    assert second.take(is_chat=False)


def test_batch_gives_way_to_waiting_chat_after_its_step(engines: Engines) -> None:
    batch, chat = engines.new(), engines.new()
    assert batch.take(is_chat=False)
    assert not chat.take(is_chat=True)
    assert not batch.take(is_chat=False)
    assert chat.take(is_chat=True)


def test_chat_overtakes_batch_that_waits_already(engines: Engines) -> None:
    first, second, chat = engines.new(), engines.new(), engines.new()
    assert first.take(is_chat=False)
    assert not second.take(is_chat=False)
    assert not chat.take(is_chat=True)
    first.give_back()
    assert not second.take(is_chat=False)
    assert chat.take(is_chat=True)
    chat.give_back()
    assert second.take(is_chat=False)


def test_an_engine_that_gets_a_chat_while_it_waits_overtakes_batch(engines: Engines) -> None:
    first, second, third = engines.new(), engines.new(), engines.new()
    assert first.take(is_chat=False)
    assert not second.take(is_chat=False)
    assert not third.take(is_chat=False)
    assert not third.take(is_chat=True)
    first.give_back()
    assert not second.take(is_chat=False)
    assert third.take(is_chat=True)


def test_an_engine_that_has_nothing_left_to_do_holds_up_no_other(engines: Engines) -> None:
    first, second, third = engines.new(), engines.new(), engines.new()
    assert first.take(is_chat=False)
    assert not second.take(is_chat=True)
    second.give_back()
    assert not third.take(is_chat=False)
    first.give_back()
    assert third.take(is_chat=False)


def test_chats_of_two_engines_take_turns(engines: Engines) -> None:
    first, second = engines.new(), engines.new()
    assert first.take(is_chat=True)
    assert not second.take(is_chat=True)
    assert first.take(is_chat=True)
    engines.clock.now += 0.02
    assert not first.take(is_chat=True)
    assert second.take(is_chat=True)


def test_a_turn_that_a_frozen_process_never_gives_up_is_not_waited_for_without_end(engines: Engines) -> None:
    frozen, other = engines.new(), engines.new()
    assert frozen.take(is_chat=False)
    assert not other.take(is_chat=False)
    engines.clock.now += 11
    assert other.take(is_chat=False)
    assert other.take(is_chat=False)
    frozen.give_back()
    assert other.take(is_chat=False)
    assert not frozen.take(is_chat=False)


def test_engines_go_on_without_turns_when_the_semaphores_are_removed(
    engines: Engines, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = engines.new(), engines.new()
    assert first.take(is_chat=False)
    engines.remove_semaphores()
    for _ in range(2):
        assert second.take(is_chat=False)
        assert first.take(is_chat=True)
        first.give_back()
    assert capfd.readouterr().err.count("no longer take turns") == 2


def hold(key: int, connection: Connection, *, is_chat: bool) -> None:
    """Take the turn in a process of its own, report it, and keep it until a message comes."""
    turn = CpuTurn(Semaphores(key))
    while not turn.take(is_chat=is_chat):
        pass
    connection.send("has the turn")
    connection.recv()
    turn.give_back()
    connection.send("gave it back")


class Process:
    """A process that holds the turn as soon as it gets it."""

    def __init__(self, key: int, *, is_chat: bool) -> None:
        self.connection, other = _fork.Pipe()
        self.process = _fork.Process(target=hold, args=(key, other), kwargs={"is_chat": is_chat}, daemon=True)
        self.process.start()
        other.close()

    def has_turn(self) -> bool:
        """Wait for the turn of the process."""
        return self.connection.poll(10) and bool(self.connection.recv() == "has the turn")

    def give_back(self) -> None:
        self.connection.send("give back")
        assert self.connection.recv() == "gave it back"

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def wait_for(semaphores: Semaphores, number: int) -> None:
    """Wait until an engine is at this place."""
    while not semaphores.value(number):
        os.sched_yield()


def test_the_turn_of_a_killed_process_is_free(engines: Engines) -> None:
    holder = Process(engines.key, is_chat=False)
    assert holder.has_turn()
    waiting = Process(engines.key, is_chat=False)
    wait_for(engines.semaphores, BATCH)
    holder.kill()
    assert waiting.has_turn()
    waiting.kill()
    assert engines.new().take(is_chat=False)


def test_the_place_of_a_process_that_is_killed_while_it_waits_is_free(engines: Engines) -> None:
    holder, other = engines.new(), engines.new()
    assert holder.take(is_chat=False)
    waiting = Process(engines.key, is_chat=True)
    wait_for(engines.semaphores, CHAT)
    waiting.kill()
    holder.give_back()
    assert other.take(is_chat=False)


def test_chat_of_another_process_comes_before_batch(engines: Engines) -> None:
    holder = engines.new()
    assert holder.take(is_chat=False)
    batch = Process(engines.key, is_chat=False)
    wait_for(engines.semaphores, BATCH)
    chat = Process(engines.key, is_chat=True)
    wait_for(engines.semaphores, CHAT)
    holder.give_back()
    assert chat.has_turn()
    assert not batch.connection.poll(0)
    chat.give_back()
    assert batch.has_turn()
    batch.kill()


def test_chat_keeps_the_turn_twice_as_long_as_it_waited_so_that_batch_goes_on(engines: Engines) -> None:
    batch, chat = engines.new(), engines.new()
    assert batch.take(is_chat=False)
    assert not chat.take(is_chat=True)
    engines.clock.now += 2
    batch.give_back()
    assert chat.take(is_chat=True)
    waiting = Process(engines.key, is_chat=False)
    wait_for(engines.semaphores, BATCH)
    engines.clock.now += 3.9
    assert chat.take(is_chat=True)
    engines.clock.now += 0.2
    assert not chat.take(is_chat=True)
    assert waiting.has_turn()
    waiting.kill()
    assert chat.take(is_chat=True)


def test_an_engine_without_a_key_has_cores_of_its_own() -> None:
    assert isinstance(open_turn(None), OwnCores)


def test_engines_with_the_same_key_take_turns(engines: Engines) -> None:
    first, second = open_turn(engines.key), open_turn(engines.key)
    assert first.take(is_chat=False)
    assert not second.take(is_chat=False)


def test_an_engine_on_a_system_without_semaphores_takes_no_turns(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(key: int) -> Semaphores:
        raise OSError(errno.ENOSPC, "No space left on device", key)

    monkeypatch.setattr("engine.process.cpu_turn.Semaphores", refuse)
    assert isinstance(open_turn(1), OwnCores)
    assert "No space left on device" in capfd.readouterr().err


def test_semaphores_of_another_user_are_not_used(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert isinstance(open_turn(engines.key), OwnCores)
