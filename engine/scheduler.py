"""Which tokens go into the next step, and what a step's result means. Pure Python over token ids.

A step mixes the tokens of every sequence that decodes with chunks of prompts still to be read, under a token budget:

    slot 0  ·········■           decode: one token, or several that a constraint forces
    slot 1  ····■■■■■■           the last chunk of a prompt: sampled too
    slot 2  ■■■■■■····           a chunk: nothing to sample yet
    slot 3  ·····                paused: its memory is kept, it computes nothing

At most `slots` sequences run side by side; the slots beyond that many keep what is paused, and histories whose start
somebody may need again. Chat is admitted before batch and takes the place of the youngest batch sequence if it must. Who
waits for a text that somebody is just reading waits for that, and then forks it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from engine.drafts import PromptLookup
from engine.errors import DecodeFailed
from engine.messages import FinishReason, Priority
from engine.plan import Entry, Plan, Sampled, Shift
from engine.sequence import Sequence
from engine.slots import Fork, MemoryTraits, SlotTable, common_prefix, count_runs
from engine.waiting import WaitingQueue

_WORTH_WAITING: Final = 16
_LOOK_AHEAD: Final = 4
_INTERACTIVE_SHARE: Final = 4
_MAX_FORCED: Final = 64
# Rows of logits a step has beyond one (and its drafts) for each slot: for a prompt whose own probabilities are asked for.
SCORED_ROWS: Final = 32


class Scheduler:
    """Slots and the queue before them. `is_end` says whether a token ends a generation."""

    def __init__(
        self,
        *,
        slots: int,
        spare_slots: int = 0,
        context_size: int,
        batch_tokens: int,
        prefill_tokens: int,
        is_end: Callable[[int], bool],
        traits: MemoryTraits | None = None,
        oldest: Callable[[int], int] = lambda _: 0,
        shifts_context: bool = False,
        max_drafts: int = 0,
    ) -> None:
        assert batch_tokens >= slots, "every slot must be able to decode in one step"
        self._traits = traits or MemoryTraits()
        self._most_running = slots
        self._context_size = context_size
        self._batch_tokens = batch_tokens
        self._prefill_tokens = prefill_tokens
        self._is_end = is_end
        self._shifts_context = shifts_context
        self._max_drafts = max_drafts if self._traits.can_trim else 0
        self._slots = SlotTable(slots + spare_slots, self._traits, oldest)
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._paused: list[Sequence] = []
        self._lookups: dict[Sequence, PromptLookup] = {}
        self._by_key: dict[tuple[str, str], list[Sequence]] = {}
        self._admissions = itertools.count(1)
        self._forks: list[Fork] = []
        self._clock = 0

    # --- who is here -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """Sequences that compute, in order of admission."""
        return list(self._running)

    @property
    def num_running(self) -> int:
        """How many compute."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not compute now: without a slot, or paused in one."""
        return len(self._waiting) + len(self._paused)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its prompt is not empty and leaves room for a token."""
        assert 0 < len(sequence.tokens) < self._context_size, "checked before it came here"
        self._by_key.setdefault(sequence.key, []).append(sequence)
        self._waiting.arrive(sequence)

    def find(self, client: str, request_id: str) -> list[Sequence]:
        """The sequences of a request that wait or run."""
        return list(self._by_key.get((client, request_id), ()))

    def of_client(self, client: str) -> list[Sequence]:
        """Everything a client has here."""
        return [sequence for found in self._by_key.values() for sequence in found if sequence.client == client]

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. What it computed stays in its slot for whoever begins the same way."""
        siblings = self._by_key.get(sequence.key, [])
        if sequence not in siblings:
            return
        siblings.remove(sequence)
        if not siblings:
            del self._by_key[sequence.key]
        self._lookups.pop(sequence, None)
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._paused:
            self._paused.remove(sequence)
        else:
            self._waiting.take(sequence)
        self._waiting.leave(sequence)
        self._vacate(sequence)

    def forget_memory(self) -> None:
        """The decoder's memory was cleared: nothing that any slot held is there."""
        for sequence in [*self._running, *self._paused]:
            self._drop(sequence)
        for slot in self._slots:
            slot.forget()
        self._forks.clear()

    # --- a step ------------------------------------------------------------------------------------------------------

    def admit(self) -> list[Sequence]:
        """Let those run whose turn it is; returns who got a slot anew."""
        self._clock += 1
        self._make_way()
        self._resume()
        admitted = []
        for sequence in self._candidates():
            if len(self._running) >= self._most_running:
                break
            if not self._is_worth_waiting(sequence) and self._place(sequence):
                admitted.append(sequence)
        return admitted

    def plan(self) -> Plan:
        """The next step; empty when nothing runs."""
        self._close_gaps()
        shifts = [shift for sequence in self._running if (shift := self._shift(sequence)) is not None]
        decoding = [sequence for sequence in self._running if not sequence.is_reading]
        entries = [self._decode_entry(sequence, len(decoding)) for sequence in decoding]
        budget = self._batch_tokens - sum(len(entry.tokens) for entry in entries)
        entries += self._read_entries(min(budget, self._reading_budget(decoding)))
        entries.sort(key=lambda entry: entry.slot)
        forks, self._forks = self._forks, []
        return Plan(entries, forks, shifts)

    def apply(self, plan: Plan, sampled: list[Sampled]) -> list[tuple[Sequence, list[int], Sampled]]:
        """Record a step: one result per sampled entry. Returns each sequence that grew, with its new tokens and where from.

        A sequence that reached its end has its `finish_reason`; it keeps its slot until `release`.
        """
        results = iter(sampled)
        grown = []
        for entry in plan.entries:
            sequence = entry.sequence
            result = next(results) if entry.num_rows else None
            accepted = result.num_accepted if result is not None else 0
            sequence.num_computed += len(entry.tokens) - entry.num_drafts + accepted
            if result is not None:
                sequence.prompt_logprobs += result.prompt_logprobs
                if result.tokens or result.failure is not None:
                    grown.append((sequence, self._append(sequence, result), result))
            slot = self._slots[entry.slot]
            slot.num_valid = sequence.num_computed
            slot.used_at = self._clock
            if sequence.num_computed == sequence.snapshot_at:
                self._take_snapshot(sequence)
        return grown

    def evict(self) -> Fork:
        """Give memory back when a step found no room: the history that was used longest ago, else a paused sequence.

        Raises DecodeFailed when those who run have all of it.
        """
        held = [slot for slot in self._slots.free() if slot.num_valid]
        if held:
            slot = min(held, key=lambda slot: slot.used_at)
        elif self._paused:
            slot = self._slots[self._slot_of(self._paused[-1])]
            self._drop(self._paused[-1])
        else:
            raise DecodeFailed("The memory of the model is full.")
        slot.forget()
        return Fork(slot.index, slot.index, 0)

    def check_integrity(self) -> None:
        """What must hold between any two calls."""
        assert len(self._running) <= self._most_running, "too many run"
        known = {sequence for found in self._by_key.values() for sequence in found}
        placed = [*self._running, *self._paused, *self._waiting]
        assert len(placed) == len(known), "a sequence is in two places, or in none"
        assert set(placed) == known, "a sequence is somewhere unknown"
        for slot in self._slots:
            assert slot.num_valid <= max(len(slot.tokens), 0), "more memory than tokens"
            holder = slot.holder
            assert holder is None or holder.slot == slot.index, "a slot's sequence thinks it is elsewhere"
            assert holder is None or holder in known, "a slot holds a forgotten sequence"
            assert holder is None or slot.num_valid == holder.num_computed, "slot and sequence disagree"
        for sequence in self._waiting:
            assert sequence.slot is None, "waits in a slot"
            assert sequence.num_computed == 0, "computed without a slot"
        for sequence in (*self._running, *self._paused):
            assert self._slots[self._slot_of(sequence)].holder is sequence, "a sequence's slot is somebody else's"
            assert sequence.num_computed <= len(sequence.tokens), "computed more than there is"

    # --- admission ---------------------------------------------------------------------------------------------------

    def _make_way(self) -> None:
        """Chat that waits takes the places of the youngest batch sequences."""
        waiting = sum(1 for _ in itertools.takewhile(_is_chat, itertools.islice(self._waiting, self._most_running)))
        for _ in range(waiting - (self._most_running - len(self._running))):
            batch = [sequence for sequence in self._running if sequence.priority is Priority.BATCH]
            if not batch:
                return
            youngest = max(batch, key=lambda sequence: sequence.admission)
            self._running.remove(youngest)
            self._paused.append(youngest)

    def _resume(self) -> None:
        """Who was paused goes on before anybody new begins, but after chat."""
        self._paused.sort(key=lambda sequence: sequence.admission)
        while self._paused and len(self._running) < self._most_running and not self._waiting.has_chat:
            self._running.append(self._paused.pop(0))

    def _candidates(self) -> list[Sequence]:
        """Those whose turn it is, and a few more in case somebody waits for a text that is being read."""
        free = self._most_running - len(self._running)
        return list(itertools.islice(self._waiting, free + _LOOK_AHEAD)) if free > 0 else []

    def _is_worth_waiting(self, sequence: Sequence) -> bool:
        """Is somebody just reading what this one needs? Then it waits, and forks."""
        if sequence.is_scoring:
            return False
        planned, reader = 0, None
        for other in self._running:
            if other.is_reading and other.tenant == sequence.tenant and other.num_shifted == 0:
                most = min(len(other.tokens), len(sequence.tokens) - 1)
                length = common_prefix(other.tokens, sequence.tokens, most)
                if length > max(planned, other.num_computed):
                    planned, reader = length, other
        if reader is None:
            return False
        computed = max(self._slots.usable(slot, sequence) for slot in self._slots)
        least = 1 if reader.key == sequence.key else _WORTH_WAITING
        if planned - computed < least:
            return False
        if not self._traits.can_trim:
            if reader.snapshot_at is None and reader.num_computed < planned:
                reader.snapshot_at = planned
            return reader.snapshot_at is not None and reader.snapshot_at <= planned
        return True

    def _place(self, sequence: Sequence) -> bool:
        """Give a slot, with as much of its prompt as some slot already holds; False when no slot can be had."""
        running = {self._slot_of(other) for other in self._running}
        chosen = self._slots.choose(sequence, running)
        if chosen is None and self._paused and sequence.priority is Priority.CHAT:
            self._drop(self._paused[-1])
            chosen = self._slots.choose(sequence, running)
        if chosen is None:
            return False
        source, target, length = chosen
        self._fork(source.index, target.index, length)
        target.tenant, target.tokens, target.holder = sequence.tenant, sequence.tokens, sequence
        target.num_valid = sequence.num_computed = length
        if sequence.num_cached is None:
            sequence.num_cached = min(length, sequence.num_prompt_tokens)  # what is forced to follow is no prompt
        sequence.slot, sequence.read_until = target.index, len(sequence.tokens)
        sequence.snapshot_at = None
        sequence.admission = sequence.admission or next(self._admissions)
        self._waiting.take(sequence)
        self._running.append(sequence)
        if not self._traits.can_trim:
            self._expect_followers(sequence)
        return True

    def _expect_followers(self, sequence: Sequence) -> None:
        """A memory that cannot be trimmed is forked where a history ends: plan to stop where the next one's text parts."""
        for follower in itertools.islice(self._waiting, 1):
            if follower.tenant == sequence.tenant:
                most = min(len(sequence.tokens), len(follower.tokens)) - 1
                length = common_prefix(sequence.tokens, follower.tokens, most)
                if length - sequence.num_computed >= _WORTH_WAITING:
                    sequence.snapshot_at = length

    def _take_snapshot(self, sequence: Sequence) -> None:
        """Keep a copy of what is computed so far in a free slot, away from those that are filled first."""
        sequence.snapshot_at = None
        free = self._slots.free()
        if not free:
            return
        slot = self._slots[self._slot_of(sequence)]
        target = min(free, key=lambda slot: (slot.num_valid > 0, slot.used_at, -slot.index))
        self._fork(slot.index, target.index, slot.num_valid)
        target.tokens = sequence.tokens[: slot.num_valid]
        target.num_valid, target.tenant = slot.num_valid, slot.tenant

    def _fork(self, source: int, target: int, length: int) -> None:
        held = self._slots[target].num_valid
        if source != target or held != length:
            self._forks.append(Fork(source, target, length))
        self._slots[source].used_at = self._slots[target].used_at = self._clock

    def _close_gaps(self) -> None:
        """In split memory a gap between slots costs a pass of its own, so the tail of a batch moves together."""
        if not self._traits.is_split or self._waiting or self._paused or self._forks:
            return
        held = {self._slot_of(sequence): sequence for sequence in self._running}
        runs = count_runs(set(held))
        if runs < 2:
            return
        last = max(held)
        moves = ((count_runs(set(held) - {last} | {slot.index}), slot) for slot in self._slots.free())
        fewer, target = min(moves, key=lambda move: move[0])
        if fewer < runs:
            self._move(held[last], target.index)

    def _move(self, sequence: Sequence, index: int) -> None:
        source, target = self._slots[self._slot_of(sequence)], self._slots[index]
        self._forks += [
            Fork(source.index, target.index, source.num_valid),
            Fork(source.index, source.index, 0),
        ]
        target.tokens, target.num_valid, target.tenant = source.tokens, source.num_valid, source.tenant
        target.holder, target.used_at = sequence, self._clock
        source.holder = None
        source.forget()
        sequence.slot = index

    def _drop(self, sequence: Sequence) -> None:
        """Take its slot away; it waits at its old turn and will compute its tokens again."""
        (self._running if sequence in self._running else self._paused).remove(sequence)
        self._vacate(sequence)
        sequence.num_computed = sequence.num_shifted = 0
        sequence.prompt_logprobs.clear()
        self._waiting.put_back(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        slot.holder, slot.used_at = None, self._clock
        slot.num_valid = min(slot.num_valid, len(sequence.tokens))
        slot.tokens = sequence.tokens[: slot.num_valid]
        if sequence.num_shifted:  # positions and tokens do not match any more
            slot.tenant = ""
        sequence.slot = None

    def _slot_of(self, sequence: Sequence) -> int:
        assert sequence.slot is not None, "whoever runs or is paused has a slot"
        return sequence.slot

    # --- composing a step --------------------------------------------------------------------------------------------

    def _decode_entry(self, sequence: Sequence, num_decoding: int) -> Entry:
        start = sequence.num_computed
        tokens = sequence.tokens[start : start + _MAX_FORCED]
        is_last = start + len(tokens) == len(sequence.tokens)
        drafts = self._drafts(sequence) if is_last and num_decoding <= 2 and len(tokens) == 1 else []
        rows = 1 + len(drafts) if is_last else 0
        return Entry(
            sequence, self._slot_of(sequence), start - sequence.num_shifted, tokens + drafts, rows, len(drafts)
        )

    def _drafts(self, sequence: Sequence) -> list[int]:
        """Guesses at what comes next, for a sequence that decodes (nearly) alone and so leaves the processor idle."""
        if not self._max_drafts or sequence.constraint is not None:
            return []
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = self._lookups[sequence] = PromptLookup(sequence.tokens)
        room = self._context_size - (len(sequence.tokens) - sequence.num_shifted) - 1
        if sequence.max_tokens is not None:
            room = min(room, sequence.max_tokens - sequence.num_generated - 1)
        return lookup.propose(min(self._max_drafts, room))

    def _reading_budget(self, decoding: list[Sequence]) -> int:
        """Prompts are read in smaller pieces while somebody watches an answer grow."""
        if any(_is_chat(sequence) for sequence in decoding):
            return max(1, self._prefill_tokens // _INTERACTIVE_SHARE)
        return self._prefill_tokens

    def _read_entries(self, budget: int) -> list[Entry]:
        """Chunks of prompts: chat alone while there is any, each group in order of admission."""
        reading = [sequence for sequence in self._running if sequence.is_reading]
        chat = [sequence for sequence in reading if _is_chat(sequence)]
        entries = []
        is_scoring = False
        for sequence in sorted(chat or reading, key=lambda sequence: sequence.admission):
            if budget <= 0:
                break
            if sequence.is_scoring:
                if is_scoring:  # rows are dear: one at a time
                    continue
                is_scoring = True
            entry = self._read_entry(sequence, min(budget, SCORED_ROWS) if sequence.is_scoring else budget)
            entries.append(entry)
            budget -= len(entry.tokens)
        return entries

    def _read_entry(self, sequence: Sequence, budget: int) -> Entry:
        start, end = sequence.num_computed, len(sequence.tokens)
        if sequence.snapshot_at is not None and start < sequence.snapshot_at:
            end = sequence.snapshot_at
        tokens = sequence.tokens[start : min(end, start + budget)]
        rows = len(tokens) if sequence.is_scoring else int(start + len(tokens) == len(sequence.tokens))
        return Entry(
            sequence,
            self._slot_of(sequence),
            start - sequence.num_shifted,
            tokens,
            rows,
            is_scored=sequence.is_scoring,
        )

    def _shift(self, sequence: Sequence) -> Shift | None:
        """Room for the next token in a full context, where the model file asks for it."""
        used = len(sequence.tokens) - sequence.num_shifted
        if not self._shifts_context or used < self._context_size:
            return None
        keep = min(sequence.num_prompt_tokens, self._context_size // 4)
        discard = (self._context_size - keep) // 2
        sequence.num_shifted += discard
        slot = self._slots[self._slot_of(sequence)]
        slot.tenant = ""  # its history is nobody's prompt any more
        return Shift(slot.index, keep, discard)

    # --- results -----------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, result: Sampled) -> list[int]:
        """Add new tokens until one ends the answer; returns those that were added."""
        lookup = self._lookups.get(sequence)
        if lookup is not None:
            lookup.judge(result.num_accepted)
        new: list[int] = []
        for token in result.tokens:
            sequence.tokens.append(token)
            new.append(token)
            sequence.finish_reason = self._finish_reason(sequence, token)
            if sequence.finish_reason is not None:
                break
        if result.is_complete and len(new) == len(result.tokens):
            sequence.finish_reason = FinishReason.STOP  # at a limit too: there is no more to come
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens))
        return new

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        if not sequence.ignore_eos and self._is_end(token):
            return FinishReason.STOP
        if sequence.num_generated == sequence.max_tokens:
            return FinishReason.LENGTH
        if len(sequence.tokens) >= self._context_size and not self._shifts_context:
            return FinishReason.LENGTH
        return None


def _is_chat(sequence: Sequence) -> bool:
    return sequence.priority is Priority.CHAT
