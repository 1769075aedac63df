"""Servers of others as upstreams, started by the engine: llama.cpp's own, and that of llama-cpp-python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from engine.types import Failed, FinishReason, Priority
from tests.support.llama_server import installed_client, llama_server
from tests.support.upstream import COMPLETIONS, forward
from tests.support.upstream_process import UpstreamProcess

_MODEL: Final = Path(__file__).parents[2] / "models" / "demo.gguf"
_QUESTION: Final = [{"role": "user", "content": "What is the capital of France?"}]
_ANSWER: Final = "The capital of France is Paris."
# llama-cpp-python's server, with the packages of its own environment behind ours
_LLAMA_CPP_PYTHON: Final = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


def _llama_server() -> dict[str, Any]:
    return {"command": llama_server(_MODEL)}


def _llama_cpp_server() -> dict[str, Any]:
    (packages,) = installed_client("llama_cpp_server").glob("lib/python*/site-packages")
    options = (
        "--model",
        str(_MODEL),
        "--port",
        "{port}",
        "--n_ctx",
        "1024",
        "--n_threads",
        "1",
        "--interrupt_requests",
        "false",
    )
    command = (sys.executable, "-c", _LLAMA_CPP_PYTHON, str(packages), *options)
    return {"command": command, "health_path": "/v1/models"}


@pytest.fixture(scope="module", params=[_llama_server, _llama_cpp_server])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    """An engine with one of the servers on the demo model, which it has started itself."""
    with UpstreamProcess(tmp_path_factory.mktemp("u"), **request.param()) as engine:
        engine.client.wait_ready(60)
        yield engine


def _check_chat(engine: UpstreamProcess, **body: Any) -> str:
    """A whole answer, a streamed one and a batch line are the same; returns the text."""
    whole = engine.submit(forward("whole", **body)).finished
    streamed = engine.submit(forward("streamed", stream=True, **body))
    line = engine.submit(forward("line", priority=Priority.BATCH, **body)).finished
    assert streamed.finished.choices == whole.choices == line.choices
    assert streamed.text == whole.text
    for finished in (whole, streamed.finished, line):
        assert finished.usage.completion_tokens > 0
    assert whole.usage.prompt_tokens > 0  # llama-cpp-python sends no usage with a stream
    return whole.text


def test_a_chat_of_a_llama_server_is_the_same_in_all_ways(llama: UpstreamProcess) -> None:
    assert _check_chat(llama, messages=_QUESTION, temperature=0, max_tokens=24) == _ANSWER


def test_log_probabilities_of_a_llama_server_spell_its_answer(llama: UpstreamProcess) -> None:
    body: dict[str, Any] = {
        "messages": _QUESTION,
        "temperature": 0,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    choice = llama.submit(forward(**body)).finished.choices[0]
    assert choice.reason is FinishReason.LENGTH
    assert choice.logprobs is not None
    assert b"".join(each.piece for each in choice.logprobs).decode() == choice.text
    assert all(each.top and each.logprob <= 0 for each in choice.logprobs)


def test_a_text_completion_of_a_llama_server_has_its_text(llama: UpstreamProcess) -> None:
    body: dict[str, Any] = {"prompt": "The capital of", "temperature": 0, "max_tokens": 8}
    whole = llama.submit(forward("whole", COMPLETIONS, **body)).finished
    streamed = llama.submit(forward("streamed", COMPLETIONS, stream=True, **body))
    assert whole.text
    assert streamed.finished.text == streamed.text == whole.text


def test_many_requests_at_once_are_answered_by_a_llama_server(llama: UpstreamProcess) -> None:
    body: dict[str, Any] = {"messages": _QUESTION, "temperature": 0, "max_tokens": 24, "priority": Priority.BATCH}
    recorders = [llama.submit(forward(f"r{n}", **body)) for n in range(20)]
    assert {recorder.finished.text for recorder in recorders} == {_ANSWER}


def test_a_body_that_a_llama_server_refuses_gets_its_own_error(llama: UpstreamProcess) -> None:
    outcome = llama.ask(messages="no list")
    assert isinstance(outcome, Failed)
    assert outcome.status is not None
    assert outcome.status >= 400
    assert "messages" in outcome.message
