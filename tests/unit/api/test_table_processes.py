"""Table processes: real children, with the limits that keep a hostile table or template from the api and the machine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl
import psutil
import pytest

from api.tables.table_processes import TableProcesses, job_limits
from core.errors import ApiError
from mapping.jobs.messages import JobLimits, ListResults, MapSummary, PrepareTable, ResultRow, TableFile
from tests.support.processes import command_of

MIB: Final = 1 << 20
SMALL: Final = JobLimits(cpu_seconds=1, memory_bytes=256 * MIB, output_bytes=MIB)
MAPPING: Final = {"model": "fake", "prompt": "{text}"}


async def prepare(
    path: Path,
    mapping: dict[str, Any] | None = None,
    *,
    processes: TableProcesses | None = None,
    limits: JobLimits = SMALL,
    seconds: float = 20,
    **options: Any,
) -> MapSummary:
    with path.open("rb") as stream:
        table = TableFile(descriptor=stream.fileno(), name=path.name, param="file")
        chosen = {"max_requests": 1000, "sample": 3, **options}
        job = PrepareTable(parent=os.getpid(), limits=limits, table=table, mapping=mapping or MAPPING, **chosen)
        runner = processes or TableProcesses()
        printed = await runner.run("tenant", job, [stream.fileno()], wall_seconds=seconds)
    return msgspec.json.decode(printed, type=MapSummary)


def children() -> list[psutil.Process]:
    """The children that run a job, of all children of this process."""
    alive = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in alive if "mapping" in command_of(child)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(100)))
    return path


@pytest.mark.parametrize(
    "prompt",
    [
        "{text}{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{{ text ~ 'x' * 9999999999 }}",
        "{{ text.__class__.__mro__ }}",
        "{{ (text * 4000000)|upper|lower|upper }}",
        "{% set x = text %}{% for a in range(19999) %}{% set x = x ~ text ~ 'aaaaaaaaaaaaa' %}{% endfor %}{{ x }}",
        "{{ 9 ** 9 ** 9 ** 9 }}{text}",
        "{text}" + "{{ (" * 3000,
    ],
)
async def test_a_hostile_template_is_over_in_a_moment(table: Path, prompt: str) -> None:
    """It is refused, or its rows are, or its process ends at a limit; the children of the api are gone in any case."""
    with suppress(ApiError):
        found = await prepare(table, {"model": "fake", "prompt": prompt})
        assert found.rows_asked == 0 or len(json.dumps(found.sample[0].body)) < MIB
    assert children() == []


async def test_too_much_work_is_a_400_that_names_the_command_without_limits(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "row\n" * 2_000_000)
    with pytest.raises(ApiError, match=r"more than 1 seconds.*`millrace map`") as caught:
        await prepare(path)
    assert (caught.value.problem.status, caught.value.problem.code) == (400, "table_too_large")
    with pytest.raises(ApiError, match="more than 0 seconds"):
        await prepare(path, seconds=0.01)


async def test_more_requests_than_a_batch_has_are_a_400_that_says_what_to_do(table: Path) -> None:
    assert (await prepare(table, max_requests=100)).requests == 100
    with pytest.raises(ApiError, match=r"more than 99 requests.*'limit'.*`millrace map`") as caught:
        await prepare(table, max_requests=99)
    assert caught.value.problem.param == "mapping.limit"


def bomb(path: Path) -> Path:
    """An Excel file of some KB that is hundreds of MB."""
    made = io.BytesIO()
    pl.DataFrame({"text": ["a"]}).write_excel(made)
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            if "sheet1.xml" not in name:
                target.writestr(name, source.read(name))
        with target.open("xl/worksheets/sheet1.xml", "w") as sheet:
            main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
            sheet.write(f'<worksheet xmlns="{main}"><sheetData>'.encode())
            row = b'<row><c t="inlineStr"><is><t>' + b"A" * 1000 + b"</t></is></c></row>"
            for _ in range(200):
                sheet.write(row * 1000)
            sheet.write(b"</sheetData></worksheet>")
    return path


async def test_a_zip_bomb_ends_at_the_memory_limit(tmp_path: Path) -> None:
    path = bomb(tmp_path / "in.xlsx")
    assert path.stat().st_size < 3 * MIB
    limits = msgspec.structs.replace(SMALL, cpu_seconds=20)
    with pytest.raises(ApiError, match="more than 256 MiB") as caught:
        await prepare(path, limits=limits)
    assert caught.value.problem.code == "table_too_large"


async def test_output_over_its_limit_is_a_400(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "x" * 2 * MIB}) + "\n")
    with pytest.raises(ApiError, match="writes more than 1 MiB"):
        await prepare(path)


async def test_a_child_has_no_secret_of_the_api_and_its_limits(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL", "postgresql://u:secret@h/d")
    seen: list[psutil.Process] = []

    async def look(processes: TableProcesses) -> None:
        async with aclosing(_endless(processes)) as chunks:
            await anext(chunks)
            (child,) = children()
            assert not any("secret" in value or "MILLRACE" in name for name, value in child.environ().items())
            assert child.rlimit(psutil.RLIMIT_DATA) == (1 << 30, 1 << 30)
            assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
            assert child.nice() >= 5
            assert child.num_fds() == 3
            seen.append(child)

    await look(TableProcesses())
    assert not seen[0].is_running(), "the client has left"


async def test_a_request_that_is_given_up_leaves_no_child(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "row\n" * 2_000_000)
    asked = asyncio.create_task(prepare(path, limits=msgspec.structs.replace(SMALL, cpu_seconds=60)))
    while not (running := children()):
        await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not running[0].is_running()


async def test_a_tenant_has_a_few_at_a_time_and_others_have_theirs(table: Path) -> None:
    processes = TableProcesses(of_a_tenant=1, of_all=2)
    async with aclosing(_endless(processes)) as chunks:
        await anext(chunks)
        with pytest.raises(ApiError) as caught:
            await prepare(table, processes=processes)
        assert (caught.value.problem.status, caught.value.problem.type) == (429, "tables")
        async with aclosing(_endless(processes, "other")) as others:
            assert await anext(others)
    assert (await prepare(table, processes=processes)).rows == 100


async def test_an_error_of_the_lines_ends_the_output_with_that_error() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield _row(1)
        raise LookupError("the database is away")

    job = ListResults(parent=os.getpid(), limits=SMALL, format="csv", outcome=None)
    with pytest.raises(LookupError):
        async for _ in TableProcesses().stream("tenant", job, [], broken()):
            pass
    assert children() == []


def _row(number: int) -> bytes:
    body = {"messages": [{"role": "user", "content": f"Question {number}" + "x" * 1000}]}
    return msgspec.json.encode(ResultRow(custom_id=f"line-{number}", status="queued", body=json.dumps(body))) + b"\n"


def _endless(processes: TableProcesses, tenant: str = "tenant") -> Any:
    """A table of lines that never end."""

    async def lines() -> AsyncIterator[bytes]:
        number = 0
        while True:
            number += 1
            yield _row(number)

    job = ListResults(parent=os.getpid(), limits=job_limits(60, MIB), format="csv", outcome=None)
    return processes.stream(tenant, job, [], lines())
