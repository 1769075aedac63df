"""The measurements of `python -m bench`: each makes the rows of its table, a `Result` for each."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.api import idle_readers, lookups, streams
from bench.chat import first_token, many_streams
from bench.contention import beside_busy_loops, chat_beside_batch, two_models
from bench.documents import cached_tokens_one_by_one, compare_documents, windowed_model
from bench.embeddings import compare_embeddings
from bench.engine import compare
from bench.engine_memory import memory
from bench.interactive import PAUSE_SECONDS, SHORT, chats_beside_batch
from bench.json_schema import compare_json
from bench.models import DEMO, QWEN05, SMOL135
from bench.overhead import milliseconds_per_step
from bench.page import BATCHES, open_page
from bench.pipeline import big_file, pipeline
from bench.real import compare_real
from bench.residency import residency
from bench.rest import at_rest
from bench.result import Result
from bench.sampling import compare_sampling, large_vocabulary
from bench.scale import scale
from bench.speculation import compare_speculation
from bench.tables import ROWS, microseconds_per_row
from bench.tuning import compare_tuning
from bench.upstream import ANSWER_SECONDS, LINES, PARALLEL, batch, first_token_overhead

# microseconds of CPU per line: 9,000 lines/s through one worker, and the rest of 350
_PIPELINE_CPU = {
    "workers.consumers.main batch": 111,
    "engine.process.server": 80,
    "postgres": 90,
    "api": 35,
    "workers.consumers.main clerk": 34,
}


def _pipeline(folder: Path) -> list[Result]:
    runs = pipeline(folder)
    name, rate = "batch of 20,000 lines", statistics.median(run.lines_per_second for run in runs)
    used = {each: statistics.median(run.cpu_microseconds[each] for run in runs) for each in _PIPELINE_CPU}
    whole = statistics.median(sum(run.cpu_microseconds.values()) for run in runs)
    return [
        Result(name=f"{name}, all hops", value=rate, unit="lines/s", target=4500),
        Result(name=f"{name}: CPU of all processes", value=whole, unit="µs/line", target=350, is_limit=True),
        *(
            Result(name=f"{name}: CPU of {each}", value=value, unit="µs/line", target=limit, is_limit=True)
            for (each, limit), value in zip(_PIPELINE_CPU.items(), used.values(), strict=True)
        ),
    ]


def _memory(folder: Path) -> list[Result]:
    _, peak = big_file(folder)
    return [
        Result(name=f"200 MB, 50,000 lines: {process}", value=size / 2**20, unit="MiB", target=300, is_limit=True)
        for process, size in sorted(peak.peaks.items())
    ]


def _chat(_: Path) -> list[Result]:
    runs = [first_token() for _ in range(3)]
    streams = [many_streams() for _ in range(3)]
    p50, p99 = statistics.median(run.p50 for run in runs), statistics.median(run.p99 for run in runs)
    rate = statistics.median(run.tokens_per_second for run in streams)
    lost = sum(run.tokens_lost for run in streams)
    return [
        Result(name="first token, one client, p50", value=p50, unit="ms", target=3, is_limit=True),
        Result(name="first token, one client, p99", value=p99, unit="ms", target=6, is_limit=True),
        Result(name="32 streams of 100 tokens", value=rate, unit="tokens/s", target=5000),
        Result(name="32 streams: tokens lost", value=lost, unit="tokens", target=0, is_limit=True),
    ]


def _api(_: Path) -> list[Result]:
    rows = [
        Result(
            name=f"1,000,000 jobs: {each.name}, p99 (p50 {each.p50:.1f})",
            value=each.p99,
            unit="ms",
            target=50,
            is_limit=True,
        )
        for each in lookups()
    ]
    many, memory_mib = streams(), idle_readers()
    return [
        *rows,
        Result(name="200 streams: tokens lost", value=many.tokens_lost, unit="tokens", target=0, is_limit=True),
        Result(
            name="200 streams: slowest over median",
            value=many.slowest_over_median,
            unit="ratio",
            target=3,
            is_limit=True,
        ),
        Result(name="api process with 1,000 idle readers", value=memory_mib, unit="MiB", target=150, is_limit=True),
    ]


def _ratio(name: str, value: float, target: float) -> Result:
    return Result(name=name, value=value, unit="ratio", target=target)


def _engine(_: Path) -> list[Result]:
    rows = []
    for model, slots in ((SMOL135, 1), (SMOL135, 8), (SMOL135, 16), (SMOL135, 32), (QWEN05, 8)):
        ours, bare = compare(model.num_tokens, model.path(), slots)
        rows.append(_ratio(f"{model.name}: unrelated prompts, {slots} slots, over bare loop", ours / bare, 0.96))
    ours, bare = compare(1000, DEMO, 16, rounds=30)
    rows.append(_ratio("demo model: unrelated prompts, 16 slots, over bare loop", ours / bare, 0.96))
    ours, bare = compare(SMOL135.num_tokens, SMOL135.path(), 16, shared=256, own=32)
    rows.append(_ratio("smol135: one shared prefix of 256, 16 slots, over bare loop", ours / bare, 0.96))
    return rows


def _json(_: Path) -> list[Result]:
    rows = []
    for model, number, least in ((SMOL135, 32, 1.45), (QWEN05, 12, 1.2)):
        targets = {"without jumps": least, "bare loop": 0.95, "llama-server": 5.0}
        ratios = compare_json(model.path(), number)
        rows += [
            _ratio(f"{model.name}: JSON by schema, over {other}", ratios[other], targets[other]) for other in ratios
        ]
    return rows


def _documents(folder: Path) -> list[Result]:
    rows = []
    if (model := windowed_model()) is not None:
        cached = min(cached_tokens_one_by_one(model)[1:])
        name = "window.gguf: texts after a shared start of 784 tokens, one by one, cached"
        rows.append(Result(name=name, value=cached, unit="tokens", target=779))
    if (seconds := compare_documents(SMOL135.path(), folder)) is not None:
        ours, theirs = seconds
        rows.append(_ratio("smol135: 16 documents x 8 questions, whole stack, over llama-server", theirs / ours, 1.5))
    return rows


def _embeddings(folder: Path) -> list[Result]:
    targets = {"bare loop": 0.95, "llama-server": 1.7}
    ratios = compare_embeddings(folder)
    return [
        _ratio(f"2,000 short texts to embed, whole stack, over {other}", ratios[other], targets[other])
        for other in ratios
    ]


def _transformers(_: Path) -> list[Result]:
    from bench import transformers  # of an extra

    rows = []
    for name, measure_rates in (
        ("64 chats of the demo model's export", transformers.compare_chats),
        ("2,000 short texts to embed by a small BERT", transformers.compare_embeddings),
    ):
        ours, bare = measure_rates()
        rows.append(_ratio(f"transformers: {name} ({ours:,.0f}/s of computing), over bare loop", ours / bare, 0.9))
    return rows


def _interactive(_: Path) -> list[Result]:
    name, path, num_tokens = _interactive_model()
    rows = []
    for slots in (8, 16):
        beside, found = f"beside a batch in {slots} slots", chats_beside_batch(path, num_tokens, slots)
        rates = statistics.median(found.idle.rates), statistics.median(found.busy.rates)
        for percentile in (50, 95):
            for kind, (idle, busy) in (
                ("first token", found.first(percentile)),
                (f"{SHORT} tokens", found.whole(percentile)),
            ):
                rows.append(
                    Result(
                        name=f"{name}: {kind} of a chat {beside}, p{percentile} (idle {1000 * idle:.0f} ms)",
                        value=1000 * busy,
                        unit="ms",
                        target=round(1000 * (2 * idle + found.step)),
                        is_limit=True,
                    )
                )
        rows += [
            _ratio(f"{name}: tokens/s of a chat {beside}, over idle", rates[1] / rates[0], 0.7),
            Result(
                name=f"{name}: what the batch in {slots} slots loses by a chat of {SHORT} tokens every {PAUSE_SECONDS:g} s",
                value=100 * found.lost,
                unit="%",
                target=25,
                is_limit=True,
            ),
        ]
    return rows


def _interactive_model() -> tuple[str, Path, int]:
    """Name, path and number of tokens of the GGUF in MILLRACE_BENCH_CHAT_MODEL, or smol135."""
    given = os.environ.get("MILLRACE_BENCH_CHAT_MODEL")
    if not given:
        return SMOL135.name, SMOL135.path(), SMOL135.num_tokens - 8
    return Path(given).stem, Path(given), 1000  # the ids below are ordinary tokens of any model


def _contention(_: Path) -> list[Result]:
    rows = []
    for name, path, num_tokens, number in (
        ("demo model", DEMO, 1000, 400),
        ("smol135", SMOL135.path(), SMOL135.num_tokens, 8),
    ):
        loops = beside_busy_loops(path, num_tokens, number)
        pair = two_models(path, num_tokens, number)
        rows += [
            Result(
                name=f"{name}: beside a busy loop on each core, over quiet",
                value=loops,
                unit="ratio",
                target=2.5,
                is_limit=True,
            ),
            Result(
                name=f"{name}: two engines together, over one by one",
                value=pair,
                unit="ratio",
                target=1.15,
                is_limit=True,
            ),
        ]
    idle, busy, step = chat_beside_batch(DEMO, 1000, SMOL135.path(), SMOL135.num_tokens)
    name = f"first token of a chat while another model runs a batch (idle {1000 * idle:.0f} ms)"
    limit = round(1000 * (2 * idle + step))
    return [*rows, Result(name=name, value=1000 * busy, unit="ms", target=limit, is_limit=True)]


def _step(_: Path) -> list[Result]:
    one_by_one, threads = compare_sampling(QWEN05.path())
    overhead = milliseconds_per_step(SMOL135, SMOL135.path())
    return [
        Result(name="Python per step, 32 sequences", value=overhead, unit="ms", target=0.5, is_limit=True),
        _ratio(f"sampling 32 x 152k ({threads:.1f} ms), over one by one", one_by_one / threads, 1.0),
    ]


def _sampling(_: Path) -> list[Result]:
    return [
        _ratio(f"16 at once, {share.name} ({share.by_processor:.2f} by processor time)", share.by_clock, share.target)
        for share in large_vocabulary()
    ]


def _engine_memory(_: Path) -> list[Result]:
    rows = []
    for model, path, requests, num_tokens in (
        ("demo model, 50,000 requests", DEMO, 50_000, 1000),
        ("smol135", SMOL135.path(), 64, SMOL135.num_tokens - 8),
        ("qwen05", QWEN05.path(), 32, QWEN05.num_tokens - 8),
    ):
        over, growth = memory(path, requests, num_tokens=num_tokens)
        name = f"engine process over model and KV: {model} (grew by {growth:.1f} MiB)"
        rows.append(Result(name=name, value=over + growth, unit="MiB", target=250, is_limit=True))
    return rows


def _tuning(_: Path) -> list[Result]:
    return [
        _ratio(f"measured settings over the best of a grid: {row.model}", row.ratio, 0.97) for row in compare_tuning()
    ]


def _speculation(_: Path) -> list[Result]:
    ratios = compare_speculation(SMOL135.path(), SMOL135.num_tokens)
    return [_ratio(f"speculation: {kind}", value, 1.0) for kind, value in ratios.items()]


def _page(_: Path) -> list[Result]:
    run = open_page()
    return [
        Result(
            name=f"page: list of {BATCHES:,} batches drawn", value=run.ready_ms, unit="ms", target=300, is_limit=True
        ),
        Result(
            name="page: the same, first load of a browser",
            value=run.first_ready_ms,
            unit="ms",
            target=500,
            is_limit=True,
        ),
        Result(
            name="page: slowest of 8 updates behind the database",
            value=run.update_ms,
            unit="ms",
            target=1000,
            is_limit=True,
        ),
        Result(
            name=f"api at rest with an open page ({run.closed_percent:.2f} % without)",
            value=run.open_percent,
            unit="% of a core",
            target=1,
            is_limit=True,
        ),
    ]


def _tables(folder: Path) -> list[Result]:
    value = statistics.median(microseconds_per_row(folder) for _ in range(3))
    return [Result(name=f"mapped CSV of {ROWS:,} rows", value=value, unit="us/row", target=20, is_limit=True)]


def _rest(folder: Path) -> list[Result]:
    found = at_rest(folder)
    for name, mib in found.mib_by_process:
        print(f"{mib:7.1f} MiB  {name}", flush=True)
    number, memory_mib = len(found.mib_by_process), sum(mib for _, mib in found.mib_by_process)
    first = f"first start {found.first_seconds:.1f} s"
    rows = [
        ("serve at rest: processes", number, "", 24),
        ("serve at rest: memory (PSS) of all", memory_mib, "MiB", 300),
        ("serve at rest: processor time of all", found.percent_of_core, "% of a core", 1),
        (f"serve until it is ready, second start ({first})", found.second_seconds, "s", 3),
    ]
    return [Result(name=name, value=value, unit=unit, target=most, is_limit=True) for name, value, unit, most in rows]


def _upstream(folder: Path) -> list[Result]:
    runs = batch(folder)
    server = f"a server of {PARALLEL} x {1000 * ANSWER_SECONDS:.0f} ms"
    alone = runs[0].alone
    whole = statistics.median(run.whole_batch for run in runs)
    rows = [
        _ratio(
            f"{LINES:,} lines through {server}, over it alone ({alone:.0f} requests/s)",
            statistics.median(run.share for run in runs),
            0.9,
        ),
        _ratio(f"the same with upload, checks and results ({whole:.0f} lines/s)", whole / alone, 0.75),
    ]
    found, overhead = runs[0].found_seconds, first_token_overhead()
    return [
        *rows,
        Result(name=f"time until {server} is full", value=found, unit="s", target=10, is_limit=True),
        Result(name="first token, over the server directly, p50", value=overhead, unit="ms", target=5, is_limit=True),
    ]


def _real(folder: Path) -> list[Result]:
    rows = []
    for row in compare_real(folder):
        name = f"real: {row.name} ({row.lines} lines in {row.ours:.1f} s at {row.our_slots} slots"
        if row.theirs is None:
            rate = row.lines / row.ours
            rows.append(Result(name=f"{name}; no llama-server)", value=rate, unit="lines/s", target=0))
        else:
            name += f"; {row.theirs:.1f} s at {row.their_slots}), over llama-server"
            rows.append(_ratio(name, row.theirs / row.ours, 1.0))
    return rows


MEASUREMENTS: dict[str, Callable[[Path], list[Result]]] = {
    "pipeline": _pipeline,
    "memory": _memory,
    "chat": _chat,
    "api": _api,
    "engine": _engine,
    "json": _json,
    "documents": _documents,
    "embeddings": _embeddings,
    "interactive": _interactive,
    "contention": _contention,
    "step": _step,
    "sampling": _sampling,
    "engine-memory": _engine_memory,
    "speculation": _speculation,
    "tuning": _tuning,
    "page": _page,
    "tables": _tables,
    "rest": _rest,
    "upstream": _upstream,
    "transformers": _transformers,
}
LONG_MEASUREMENTS: dict[str, Callable[[Path, argparse.Namespace], list[Result]]] = {
    "residency": lambda folder, options: residency(folder, minutes=options.minutes, is_real=False),
    "residency-gguf": lambda folder, options: residency(folder, minutes=options.minutes, is_real=True),
    "real": lambda folder, _: _real(folder),
    "scale": lambda folder, options: scale(folder, lines=options.lines, rows=options.rows),
}
