"""The decoder: one forward for each step, of all its tokens in one row, with a lane of memory for each slot."""

from __future__ import annotations

import time
from collections.abc import Sequence as Spans
from typing import Any

import torch

from engine.backends.logits import Logits
from engine.backends.memory import spare_slots
from engine.backends.sampler import Sampler
from engine.backends.transformers.attention import LaneAttention
from engine.backends.transformers.groups import Span, StepLayout, Tokens
from engine.backends.transformers.lanes import Lanes, LaneShape
from engine.backends.transformers.sampling import NumpyChooser
from engine.backends.transformers.tokenizer import FolderTokenizer
from engine.config import EngineConfig
from engine.errors import DecodeFailed, DeviceLost, ModelFailed
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan


class TransformersDecoder:
    """Computes and samples steps, and counts the seconds of both. `windows` are those of its layers."""

    traits = MemoryTraits(is_split=True)  # lanes keep all tokens, also in layers with a window
    max_drafts = 0

    def __init__(
        self,
        model: Any,  # Any: a model of transformers
        tokenizer: FolderTokenizer,
        config: EngineConfig,
        shapes: list[LaneShape],
        windows: dict[int, int],
    ) -> None:
        self.build = f"torch-{torch.__version__}"
        self.slots = config.slots
        self.spare_slots = spare_slots(config)
        self._model = model
        self._device = model.device
        self._windows = windows
        self._context_size = config.context_size
        try:
            self._lanes = Lanes(
                shapes,
                num_slots=self.slots + self.spare_slots,
                context_size=config.context_size,
                device=self._device,
            )
        except RuntimeError:  # of the allocator
            raise ModelFailed(
                f"There is not enough memory for {self.slots + self.spare_slots} slots of {config.context_size} tokens. "
                "Lower `slots`, `spare_slots` or `context_size` in the model file."
            ) from None
        self._sampler = Sampler(NumpyChooser, tokenizer, config.threads)
        self.decode_seconds = self.sample_seconds = 0.0

    def first_position(self, slot: int) -> int:  # noqa: ARG002 - of no slot anything is lost
        return 0

    def open(self, sequence: Sequence) -> None:
        self._sampler.open(sequence)

    def close(self, sequence: Sequence) -> None:
        self._sampler.close(sequence)

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        assert not shifts, "a model file for this backend cannot set context_shift"
        with torch.inference_mode():
            for fork in forks:
                self._lanes.fork(fork)

    def run(self, plan: StepPlan) -> list[SampleResult]:
        began = time.perf_counter()
        logits = self.forward(plan.entries)
        decoded = time.perf_counter()
        self.decode_seconds += decoded - began
        entries = plan.sampled
        if not entries:
            return []
        sampled = self._sampler.sample(entries, logits)
        self.sample_seconds += time.perf_counter() - decoded
        return sampled

    def reset(self) -> None:
        """Nothing to clear: a lane is read only as far as its sequence has written it."""

    def warm_up(self) -> None:
        self.forward([Tokens(0, 0, [0], 1)])

    def forward(self, entries: Spans[Span]) -> Logits:
        """Compute a step; return the rows of its sampled entries, (rows, vocabulary), in the order of the plan."""
        layout = StepLayout(entries, self._context_size, self._device)
        rows = layout.rows(entries)
        wanted = [row for index in range(len(entries)) for row in rows[index]]
        try:
            with torch.inference_mode():
                output = self._model(
                    input_ids=layout.tokens,
                    position_ids=layout.positions,
                    use_cache=False,
                    logits_to_keep=torch.tensor(wanted or [0], device=self._device),
                    lanes=LaneAttention(self._lanes, layout, self._windows),
                )
                logits: Logits = output.logits[0].float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise DecodeFailed("The device has not enough memory for this step.") from None
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        return logits
