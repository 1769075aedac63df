from __future__ import annotations

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.stack import StackProcess


def test_models(client: OpenAI) -> None:
    assert [(model.id, model.root) for model in client.models.list()] == [  # type: ignore[attr-defined]
        ("fake", "fake"),
        ("also-fake", "fake"),
        ("slow", "slow"),
    ]
    assert client.models.retrieve("also-fake").id == "also-fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_every_answer_forbids_sniffing(http: httpx2.Client) -> None:
    for path in ("/v1/models", "/v1/models/no", "/metrics", "/nothing"):
        assert http.get(path).headers["x-content-type-options"] == "nosniff"


def test_metrics_count_answered_requests(http: httpx2.Client) -> None:
    http.get("/v1/models")
    text = http.get("/metrics").text
    assert 'millrace_http_requests_total{route="/v1/models",status="200"}' in text


def test_the_api_describes_itself(server: StackProcess) -> None:
    paths = server.published.document["paths"]
    assert {"/v1/files", "/v1/batches", "/v1/chat/completions", "/v1/jobs", "/v1/models"} <= set(paths)


def test_a_model_name_may_have_a_slash_plain_and_encoded(demo: OpenAI, answering: StackProcess) -> None:
    """The answers of such a model are tested in `generation`."""
    assert "lab/thinker" in [model.id for model in demo.models.list()]
    assert demo.models.retrieve("lab/thinker").id == "lab/thinker"
    with httpx2.Client(base_url=answering.url) as http:
        for path in ("lab/thinker", "lab%2Fthinker", "lab%2fthinker"):
            assert http.get(f"/v1/models/{path}").json()["id"] == "lab/thinker"
        assert http.get("/v1/models/lab/none").status_code == 404
    assert (answering.state_dir / "logs" / "engine-lab%2Fthinker.log").is_file()
