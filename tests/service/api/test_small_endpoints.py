from __future__ import annotations

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.stack import StackProcess


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "slow"]
    assert client.models.retrieve("also-fake").id == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_metrics_count_answered_requests(http: httpx2.Client) -> None:
    http.get("/v1/models")
    text = http.get("/metrics").text
    assert 'millrace_http_requests_total{route="/v1/models",status="200"}' in text


def test_the_api_describes_itself(server: StackProcess) -> None:
    paths = server.published.document["paths"]
    assert {"/v1/files", "/v1/batches", "/v1/chat/completions", "/v1/jobs", "/v1/models"} <= set(paths)
