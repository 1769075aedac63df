"""The metrics of a whole stack: what the api, the worker and the clerk show after a chat and a batch, and who names them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import NotFoundError
from openai.types.chat import ChatCompletionUserMessageParam
from prometheus_client.parser import text_string_to_metric_families

from core.settings import ROOT
from tests.support.stack import StackProcess, batch_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

LINES, SECRET = 6, "a-text-of-no-other-place"


class Metrics:
    """The samples of one address."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))

    def names(self) -> set[str]:
        """The names of the series, as a query writes them."""
        found = set()
        for family in self.families:
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            found |= {family.name + end for end in ends}
        return {name for name in found if name.startswith("millrace_") and not name.endswith("_created")}

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        return sum(
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == f"millrace_{name}" and labels.items() <= sample.labels.items()
        )


class Measured:
    """A stack that has answered a chat and a batch, and failed a chat."""

    def __init__(self, stack: StackProcess, folder: Path) -> None:
        self.stack = stack
        with stack.client() as client:
            messages: list[ChatCompletionUserMessageParam] = [
                {"role": "user", "content": f"{SECRET} {n}" * 3} for n in range(2)
            ]
            self.chats = [
                client.chat.completions.create(model="fake", messages=[message], max_tokens=9).usage
                for message in messages
            ]
            with pytest.raises(NotFoundError):
                client.chat.completions.create(model="none", messages=messages)
            batch_id = start_batch(
                client, write_lines(folder / "lines.jsonl", batch_lines(LINES, max_tokens=7, temperature=1))
            )
            wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch ends")
            self.batch = client.batches.retrieve(batch_id)
        wait_for(lambda: self.api().sum("batches_completed_total") == 1, "the clerk reports its counts")
        wait_for(lambda: self.api().sum("lines_completed_total") == LINES, "the worker reports its counts")
        wait_for(lambda: self.worker().sum("engine_generated_tokens_total") > 0, "the engine reports its tokens")

    def api(self) -> Metrics:
        return Metrics(self.stack.metrics())

    def worker(self) -> Metrics:
        return self._read("worker")

    def clerk(self) -> Metrics:
        return self._read("clerk")

    def _read(self, name: str) -> Metrics:
        log = (self.stack.state_dir / "logs" / f"{name}.log").read_text()
        (url,) = [json.loads(line)["url"] for line in log.splitlines() if '"metrics_served"' in line]
        return Metrics(httpx2.get(url).text)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "models").mkdir()
    (folder / "models" / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 4\nstep_seconds: 0.001\n")
    stack = StackProcess(folder, folder / "models", MILLRACE_METRICS_PORT="0")
    stack.start()
    try:
        yield Measured(stack, folder)
    finally:
        stack.close()


def test_a_worker_counts_the_tokens_of_its_requests_and_measures_them(measured: Measured) -> None:
    worker = measured.worker()
    chats, batch = [usage for usage in measured.chats if usage], measured.batch.usage
    assert batch is not None
    of_tenant = {"model": "fake", "tenant": "default"}
    prompt = sum(usage.prompt_tokens for usage in chats) + batch.input_tokens
    completion = sum(usage.completion_tokens for usage in chats) + batch.output_tokens
    assert worker.sum("usage_prompt_tokens_total", **of_tenant) == prompt
    assert worker.sum("usage_completion_tokens_total", **of_tenant) == completion
    assert worker.sum("usage_requests_total", **of_tenant) == len(chats) + LINES
    for kind, number in (("chat", len(chats)), ("batch", LINES)):
        labels = {"model": "fake", "class": kind}
        assert worker.sum("requests_total", **labels, state="completed") == number
        for name in ("request_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds"):
            assert worker.sum(f"{name}_count", **labels) == number, name
            assert worker.sum(f"{name}_sum", **labels) > 0, name
    assert worker.sum("engine_prompt_tokens_total", model="fake") == prompt
    assert worker.sum("engine_slots", model="fake", device="cpu") == 4


def test_the_api_shows_the_same_of_the_whole_service(measured: Measured) -> None:
    api = measured.api()
    assert api.sum("chats_completed_total", model="fake") == len(measured.chats)
    assert api.sum("lines_failed_total") == 0
    assert api.sum("batches", status="in_progress") == api.sum("batches_at_risk") == 0
    assert api.sum("database_up") == 1
    assert 0 < api.sum("database_read_seconds") < 1
    assert api.sum("http_request_seconds_count", route="/v1/chat/completions") == len(measured.chats) + 1


def test_every_process_shows_its_version_memory_and_time(measured: Measured) -> None:
    shown = {"api": measured.api(), "clerk": measured.clerk()}
    shown |= dict.fromkeys(("launcher", "chat", "batch", "engine"), measured.worker())
    for process, metrics in shown.items():
        assert metrics.sum("process_resident_memory_bytes", process=process) > 1 << 20, process
        assert metrics.sum("process_cpu_seconds_total", process=process) > 0, process
    assert [shown[name].sum("build_info", process=name) for name in ("api", "clerk", "launcher")] == [1, 1, 1]


def test_a_clerk_measures_its_tasks(measured: Measured) -> None:
    clerk = measured.clerk()
    assert clerk.sum("clerk_task_seconds_count", task="prepare") >= 1
    assert clerk.sum("clerk_task_seconds_count", task="finalize") >= 1
    assert clerk.sum("clerk_task_failures_total") == 0
    assert clerk.sum("sweep_seconds_count") >= 1


def test_dashboards_and_alerts_name_only_metrics_that_exist(measured: Measured) -> None:
    shown = measured.api().names() | measured.worker().names() | measured.clerk().names()
    files = [*(ROOT / "deploy" / "grafana").glob("*.json"), *(ROOT / "deploy" / "prometheus").glob("*ing.yml")]
    files.append(ROOT / "deploy" / "prometheus" / "alerts.yml")
    assert len(files) == 4
    for file in files:
        named = set(re.findall(r"\bmillrace_\w+", file.read_text()))
        assert named, file
        assert named - shown == set(), file


def test_every_metric_is_on_the_page_of_monitoring(measured: Measured) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    named = set(re.findall(r"`(millrace_\w+)`", page))
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for metrics in (measured.api(), measured.worker(), measured.clerk())
        for family in metrics.families
        if family.name.startswith("millrace_") and not family.name.endswith("_created")
    }
    assert families - named == set()
    assert {name for name in named if name.removesuffix("_bucket") not in families} == set()


def test_metrics_have_no_text_of_a_request(measured: Measured) -> None:
    for metrics in (measured.api(), measured.worker(), measured.clerk()):
        assert SECRET not in metrics.text
        assert measured.batch.id not in metrics.text
