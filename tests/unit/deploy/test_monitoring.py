"""The rules and dashboards in `deploy`: each alert fires in its case and in no healthy one; Grafana can read each dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from core.settings import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
PAGE = ROOT / "docs" / "monitoring.md"


class Case(NamedTuple):
    """Series in promtool's notation, of one sample a minute, with which an alert fires within the time, or does not."""

    fires: dict[str, str]
    silent: dict[str, str]
    minutes: int = 12


def _one(series: str, fires: str, silent: str, minutes: int = 12) -> Case:
    return Case({f"millrace_{series}": fires}, {f"millrace_{series}": silent}, minutes)


BEGUN = 'millrace_time_to_first_token_seconds_bucket{class="chat",model="m",le="%s"}'
CASES = {
    "MillraceModelNotServed": Case(
        {'millrace_model_waiting{model="m",class="batch"}': "5x20", 'millrace_model_ready{model="m"}': "0x20"},
        {'millrace_model_waiting{model="m",class="batch"}': "5x20", 'millrace_model_ready{model="m"}': "1x20"},
    ),
    "MillraceTargetDown": Case({'up{job="millrace-api"}': "0x20"}, {'up{job="other"}': "0x20"}),
    "MillraceClerkSilent": _one('workers{kind="clerk"}', "0x20", "1x20"),
    "MillraceDatabaseDown": _one("database_up", "0x20", "1x20"),
    "MillraceDatabaseSlow": _one("database_read_seconds", "0.4x20", "0.01x20"),
    "MillraceDiskFull": Case(
        {"millrace_disk_free_bytes": "3e9x20", "millrace_disk_total_bytes": "1e12x20"},
        {"millrace_disk_free_bytes": "3e11x20", "millrace_disk_total_bytes": "1e12x20"},
    ),
    "MillraceApiErrors": Case(
        {'millrace_http_requests_total{status="200"}': "0+90x20", 'millrace_http_requests_total{status="503"}': "0+9x20"},
        {'millrace_http_requests_total{status="200"}': "0+9000x20", 'millrace_http_requests_total{status="503"}': "0+9x20"},
        14,
    ),
    "MillraceChatsWaiting": _one('model_oldest_waiting_seconds{model="m",class="chat"}', "40x20", "2x20"),
    "MillraceBatchesWaiting": _one('model_oldest_waiting_seconds{model="m",class="batch"}', "4000x20", "40x20"),
    "MillraceBatchAtRisk": _one("batches_at_risk", "1x20", "0x20"),
    "MillraceLinesExpired": _one("lines_expired_total", "0x5 9x20", "9x20"),
    "MillraceEngineCrashes": _one('engine_deaths_total{model="m"}', "0x5 4x20", "0x5 1x20"),
    "MillraceModelLoadFails": _one('model_load_failures_total{model="m"}', "0x5 1x20", "1x20"),
    "MillraceRequestsQuarantined": _one('quarantined_requests{model="m",state="refused"}', "1x20", "0x20"),
    "MillraceLeasesLost": _one("leases_lost_total", "0x5 2x20", "2x20"),
    "MillraceTicketsResent": _one("tickets_resent_total", "0+60x40", "0+1x40", 30),
    "MillraceEventsDropped": _one("events_dropped_total", "0+3x40", "3x40", 20),
    "MillraceClerkTasksFail": _one('clerk_task_failures_total{task="prepare"}', "0+1x20", "1x20"),
    "MillraceWebhooksFailing": _one("webhook_oldest_seconds", "4000x20", "10x20"),
    "MillraceWebhooksGivenUp": _one('webhook_events{state="given_up"}', "0x5 3x20", "3x20"),
    "MillraceFirstTokenSlow": Case(
        {BEGUN % "1.0": "0x40", BEGUN % "10.0": "0+9x40", BEGUN % "+Inf": "0+9x40"},
        {BEGUN % "1.0": "0+9x40", BEGUN % "10.0": "0+9x40", BEGUN % "+Inf": "0+9x40"},
        30,
    ),
}  # fmt: skip


def alerts() -> list[dict[str, Any]]:
    """The alerts as their file has them."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(path: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard that are no rows."""
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_files_of_prometheus_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_each_alert_fires_for_its_case_and_for_no_healthy_one(tmp_path: Path) -> None:
    assert sorted(CASES) == sorted(alert["alert"] for alert in alerts())
    tests = [
        {
            "interval": "1m",
            "name": f"{name} {'fires' if number else 'is silent'}",
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": number}],
                }
            ],
        }
        for name, case in CASES.items()
        for series, number in ((case.fires, 1), (case.silent, 0))
    ]
    content = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "1m", "tests": tests}
    file = tmp_path / "alerts_test.yml"
    file.write_text(yaml.safe_dump(content))
    promtool("test", "rules", file)


def test_each_alert_leads_to_a_section_of_the_manual() -> None:
    headings = [line.removeprefix("### ") for line in PAGE.read_text().splitlines() if line.startswith("### ")]
    for alert in alerts():
        notes = alert["annotations"]
        assert notes["summary"]
        assert notes["description"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert notes["runbook_url"] == f"docs/monitoring.md#{alert['alert'].lower()}"
        assert alert["alert"] in headings


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_panels_that_grafana_can_show(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in panels(path):
        assert panel["title"], panel
        assert panel["description"], panel
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        targets = [target["refId"] for target in panel["targets"]]
        assert len(targets) == len(set(targets)) > 0


def test_no_two_panels_overlap() -> None:
    for path in DASHBOARDS:
        cells: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert (x, y) not in cells, panel["title"]
                    cells.add((x, y))


def test_every_query_of_a_dashboard_can_be_parsed(tmp_path: Path) -> None:
    queries = {target["expr"] for path in DASHBOARDS for panel in panels(path) for target in panel["targets"]}
    rules = []
    for number, query in enumerate(sorted(queries)):
        for variable, value in {"$__rate_interval": "1m", "$__range": "6h", "$model": ".*", "$tenant": ".*"}.items():
            query = query.replace(variable, value)
        rules.append({"record": f"query:{number}", "expr": query})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", file)
