"""Generated tokens per second on a GPU: the engine, the bare loop and llama-server, in turns: `python -m bench.gpu`.

The models have random weights, written into a temporary folder. Prompts are short, so that decoding dominates. Targets: 0.95 of
the bare loop, and from 64 slots on 1.2 of llama-server. `--small` tries the program on a CPU, where the targets mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import llama_cpp as llama
from rich.console import Console
from rich.table import Table

from bench.bare_loop import BareLoop
from bench.engine import greedy, running_engine, salted
from bench.gpu_models import MODELS, write_random_model
from bench.llama_server import LlamaServer, build_llama_server
from bench.models import BenchModel, random_prompts
from engine.backends.llama.gguf import start_llama

_RESULTS: Final = Path(".bench") / "gpu.json"
_PROMPT: Final = 32
_ROUNDS: Final = 3
_OVER_BARE: Final = 0.95
_OVER_SERVER: Final = 1.2
_MANY_SLOTS: Final = 64
_ALL_LAYERS: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of generated tokens per second of one model and number of slots; `server` is None without a llama-server."""

    model: str
    slots: int
    engine: float
    bare: float
    server: float | None

    @property
    def over_bare(self) -> float:
        """The engine's rate over that of the bare loop."""
        return self.engine / self.bare

    @property
    def over_server(self) -> float | None:
        """The engine's rate over that of llama-server."""
        return self.engine / self.server if self.server else None

    @property
    def is_met(self) -> bool:
        """True when the targets are reached."""
        fast = self.over_server is None or self.slots < _MANY_SLOTS or self.over_server >= _OVER_SERVER
        return fast and self.over_bare >= _OVER_BARE


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["1B", "8B"], help="default: 1B 8B")
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 16, 64, 128], help="default: 1 16 64 128")
    parser.add_argument("--tokens", type=int, default=128, help="generated tokens of each prompt; default: 128")
    parser.add_argument("--small", action="store_true", help="a small model and few tokens, on any machine")
    parser.add_argument("--llama-server", metavar="PATH", help="compare with this binary, of the same sources")
    parser.add_argument(
        "--build-llama-server", action="store_true", help="build that binary into .bench, which takes minutes"
    )
    given = parser.parse_args()
    start_llama()
    on_gpu = bool(llama.llama_supports_gpu_offload())
    if not on_gpu and not given.small:
        sys.exit("llama.cpp finds no GPU here: see docs/gpus.md, or try the program with --small.")
    binary = given.llama_server or (build_llama_server() if given.build_llama_server else None)
    server = LlamaServer(binary) if binary else LlamaServer.find()
    names, tokens = (["small"], 24) if given.small else (given.models, given.tokens)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
            path = Path(folder) / f"{name}.gguf"
            write_random_model(MODELS[name], path)
            for slots in given.slots:
                rows.append(measure(MODELS[name], path, slots, tokens, server, on_gpu=on_gpu))
                print(rows[-1], flush=True)
    _print(rows)
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(
        json.dumps({"at": time.time(), "gpu": on_gpu, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )


def measure(model: BenchModel, path: Path, slots: int, tokens: int, server: LlamaServer | None, *, on_gpu: bool) -> Row:
    """Measure all three in turns, so that noise of the machine affects each alike."""
    prompts = random_prompts(2 * slots, _PROMPT, below=model.num_tokens - 8)
    threads, context_size = len(os.sched_getaffinity(0)), _PROMPT + tokens + 16
    layers = _ALL_LAYERS if on_gpu else 0
    sizes = {"slots": slots, "context_size": context_size, "threads": threads}
    requests = greedy(prompts, tokens)
    bodies = [
        {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        for prompt in prompts
    ]
    with ExitStack() as stack:
        engine = stack.enter_context(running_engine(path, gpu_layers=layers, **sizes))
        bare = BareLoop(path, slots, context_size, threads)
        stack.callback(bare.close)

        def run_engine() -> float:
            seconds, countdown = engine.run(salted(requests))
            return countdown.num_tokens / seconds

        contenders: list[Callable[[], float]] = [run_engine, lambda: bare.run(prompts, tokens)]
        if server:
            extra = ["-ngl", "99"] if on_gpu else []
            running = stack.enter_context(server.running(path, slots, context_size, threads, extra))
            contenders.append(lambda: len(prompts) * tokens / running.run(bodies))
        for run in contenders:
            run()  # the first time is slower: kernels are compiled or chosen, and memory is touched
        rates = [[run() for run in contenders] for _ in range(_ROUNDS)]
    medians = [statistics.median(each) for each in zip(*rates, strict=True)]
    return Row(model=model.name, slots=slots, engine=medians[0], bare=medians[1], server=medians[2] if server else None)


def _print(rows: Sequence[Row]) -> None:
    table = Table("model", "slots", "engine, tokens/s", "bare loop", "llama-server", "over bare", "over server", "met")
    for row in rows:
        others = [f"{row.bare:,.0f}", "" if row.server is None else f"{row.server:,.0f}"]
        ratios = [f"{row.over_bare:.2f}", "" if row.over_server is None else f"{row.over_server:.2f}"]
        table.add_row(row.model, str(row.slots), f"{row.engine:,.0f}", *others, *ratios, "yes" if row.is_met else "NO")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
