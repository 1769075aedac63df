"""An engine that ends in a step of the request called `poison`, as a crash in native code does: `PROGRAM CONFIG`."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

from engine.loop import EngineLoop
from engine.scheduler.step import SampleResult, StepPlan

_decode = EngineLoop._decode


def _decode_or_die(self: EngineLoop, plan: StepPlan) -> list[SampleResult]:
    if any(entry.sequence.request_id == "poison" for entry in plan.entries):
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()  # the signal may come a little later
    return _decode(self, plan)


if __name__ == "__main__":
    EngineLoop._decode = _decode_or_die  # type: ignore[method-assign]
    program = sys.argv.pop(1)
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
