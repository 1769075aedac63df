"""Chat share: how much a batch computes beside chat, so that chat keeps most of its idle speed and the batch makes progress.

    idle            chat chat chat chat chat chat chat chat
    on a CPU        chat chat chat chat chat chat [chat + batch      ] chat chat …
    on a GPU        [chat + batch] [chat + batch] [chat + batch] …

What a batch adds to a step is known from measured steps. Chat earns it: each of its seconds permits the batch a third of one,
so that chat keeps three quarters of its idle speed and the batch a quarter of the device, however many chats there are. One step
of many sequences costs a CPU far less than several of few, so the batch waits for a whole step, rather than adding to each.
"""

from __future__ import annotations

from typing import Final

from engine.scheduler.step_cost import OUTLIER, StepCost, StepSize

BATCH_SHARE: Final = 1 / 3  # seconds of batch for each second of chat
# What a batch adds to one step takes no longer than this, or than some steps of chat alone.
STALL_SECONDS: Final = 0.25
# While a chat runs, a step has this part of its usual prompt tokens, until their speed is known.
INTERACTIVE_DIVISOR: Final = 4
_STALL_STEPS: Final = 3.0
_MOST_DEBT_SECONDS: Final = 1.0  # after a step that took longer than expected


class Account:
    """Seconds that chat has earned for one kind of batch work."""

    def __init__(self) -> None:
        self._credit = 0.0
        self._most_credit = STALL_SECONDS

    def allows(self, seconds: float) -> bool:
        """Has chat earned these seconds?"""
        self._most_credit = max(STALL_SECONDS, seconds)  # so that it will have earned them
        return seconds <= self._credit

    def charge(self, seconds: float) -> None:
        """Record seconds that a batch took from chat; negative ones are earned."""
        self._credit = min(max(self._credit - seconds, -_MOST_DEBT_SECONDS), self._most_credit)

    def clear(self) -> None:
        """Forget what was earned or owed."""
        self._credit = 0.0


class ChatShare:
    """The accounts of one engine. Before a step is measured, nothing is limited.

    A batch that generates and one that embeds have an account each, and half of the share while both have work.
    """

    def __init__(self) -> None:
        self.cost = StepCost()
        self.embeddings = Account()
        self.has_embeddings = False
        self._generation = Account()

    def stall_seconds(self, chat: StepSize) -> float:
        """Seconds that a batch may add to a step of chat."""
        return max(STALL_SECONDS, _STALL_STEPS * self.cost.seconds(chat))

    def added_seconds(self, chat: StepSize, batch: StepSize) -> float:
        """Seconds that a batch adds to a step of chat."""
        return self.cost.seconds(chat.plus(batch)) - self.cost.seconds(chat)

    def allows(self, chat: StepSize, batch: StepSize) -> bool:
        """Has chat earned what this much of a batch adds to its step? Not before a step of so many chats alone was measured."""
        if not self.cost.is_measured:
            return True
        seconds = self.added_seconds(chat, batch) - self._share * self.cost.seconds(chat)
        return self.cost.knows(chat) and self._generation.allows(seconds)

    def record(self, chat: StepSize, batch: StepSize, seconds: float) -> None:
        """Record a measured step while chat runs."""
        together = chat.plus(batch)
        expected = self.cost.seconds(together)
        self.cost.record(together, seconds)
        if expected:
            seconds = min(seconds, OUTLIER * expected)
        alone = min(seconds, self.cost.seconds(chat)) if sum(batch) else seconds
        self._generation.charge(seconds - alone - self._share * alone)
        if self.has_embeddings:
            self.embeddings.charge(-self._share * alone)

    def record_without_chat(self, batch: StepSize, seconds: float) -> None:
        """Record a measured step while no chat runs: the batch has the device, and chat owes it nothing."""
        self.cost.record(batch, seconds)
        self._generation.clear()
        self.embeddings.clear()

    @property
    def _share(self) -> float:
        return BATCH_SHARE / 2 if self.has_embeddings else BATCH_SHARE


class EmbedShare:
    """How much embeddings compute beside chat."""

    def __init__(self, share: ChatShare) -> None:
        self._share = share
        self._cost = StepCost()

    def tokens(self, most: int) -> int:
        """Tokens of a step beside a chat: those that take no longer than a step of a batch may."""
        return self._cost.tokens_within(STALL_SECONDS, most) or max(1, most // INTERACTIVE_DIVISOR)

    def allows_batch(self, num_tokens: int) -> bool:
        """May a batch embed so many tokens beside a chat?"""
        return self._share.embeddings.allows(self._cost.seconds(StepSize(others=num_tokens)))

    def record(self, num_tokens: int, seconds: float, *, from_chat: bool) -> None:
        """Record a measured step, and whether a batch took its time from chat."""
        self._cost.record(StepSize(others=num_tokens), seconds)
        if from_chat:
            self._share.embeddings.charge(seconds)
