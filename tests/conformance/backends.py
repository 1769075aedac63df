"""The backends of this project, under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from engine.config import BackendKind, UpstreamConfig
from tests.conformance.backend_under_test import BackendUnderTest, claims
from tests.support.stack import StackProcess
from tools.export_demo_hf import export

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nFunctions: ' + tools | tojson }}
    {{- '\\nCall one as <tool_call>{"name": …, "arguments": …}</tool_call>.<|im_end|>\\n' }}{% endif %}
{%- if note %}{{ '<|im_start|>system\\n' + note + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

FAKE = BackendUnderTest(
    name="fake",
    kind=BackendKind.FAKE,
    config={"context_size": 2048, "embeddings": True, "step_seconds": 0.002, "chat_template": TEMPLATE},
    able=claims(BackendKind.FAKE),
    samples=False,
)
LLAMA = BackendUnderTest(
    name="llama",
    kind=BackendKind.LLAMA,
    config={"model_path": str(DEMO), "context_size": 1024, "embeddings": True, "chat_template": TEMPLATE},
    able=claims(BackendKind.LLAMA),
)


@contextmanager
def _exported(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The demo model as a folder of Hugging Face."""
    export(DEMO, folder / "model")
    yield {"model_path": str(folder / "model")}


TRANSFORMERS = BackendUnderTest(
    name="transformers",
    kind=BackendKind.TRANSFORMERS,
    config={"context_size": 1024, "embeddings": True, "chat_template": TEMPLATE, "threads": 1},
    able=claims(BackendKind.TRANSFORMERS),
    around=_exported,
    needs=("torch", "transformers"),
)


@contextmanager
def _behind_a_stack(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Another Millrace as the server upstream, with the demo model."""
    models = folder / "models"
    models.mkdir()
    values = {"name": "theirs", "parameters": {"model": str(DEMO)}, "context_size": 1024, "slots": 4}
    (models / "theirs.yaml").write_text(yaml.safe_dump({**values, "embeddings": True, "chat_template": TEMPLATE}))
    stack = StackProcess(folder, models)
    try:
        stack.start()
        yield {"upstream": UpstreamConfig(model="theirs", base_urls=(f"{stack.url}/v1",))}
    finally:
        stack.close()


OPENAI = BackendUnderTest(
    name="openai",
    kind=BackendKind.OPENAI,
    config={},
    able=claims(BackendKind.OPENAI),
    program="engine.upstream.server",
    around=_behind_a_stack,
    crashes=False,
)
BACKENDS = [FAKE, LLAMA, TRANSFORMERS, OPENAI]
