"""The backends of this project, under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import BackendKind
from tests.conformance.backend_under_test import BackendUnderTest, claims
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
BACKENDS = [FAKE, LLAMA, TRANSFORMERS]
