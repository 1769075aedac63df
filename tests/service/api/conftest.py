"""Fixtures: a stack with real models, a stack with API keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import Engine, text

from core import ids
from core.api_keys import KEY, new_key
from core.settings import ROOT
from db import keys
from tests.support.guarded import Guarded, write_guarded_models
from tests.support.stack import StackProcess
from workers.context import Database

MakeKey = Callable[[str], str]

# The demo model with tools in its template. It was never trained for them, so the grammar alone decides its calls.
TOOLS_TEMPLATE = """\
{%- for tool in tools or [] %}
{{- '<|im_start|>system\\n<tool_call> ' + (tool.function | tojson) + '<|im_end|>\\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- call.function.name + ' of ' + call.function.arguments.country }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt }}"""

THINKING_TEMPLATE = """\
{%- for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}
{{- 'assistant: ' + ('' if enable_thinking is false else '<think>\\n') }}"""


def write_models(folder: Path) -> None:
    """The demo model with its own template and with one for tools; a fake model with reasoning."""
    weights = ROOT / "models" / "demo.gguf"
    # one thread each: engines spinning on the same cores slow one another down
    demo = f"parameters: {{model: {weights}, temperature: 0}}\ncontext_size: 512\nslots: 8\nthreads: 1\n"
    (folder / "demo.yaml").write_text(f"name: demo\nembeddings: true\n{demo}")
    (folder / "caller.yaml").write_text(f"name: caller\n{demo}chat_template: |-\n{indented(TOOLS_TEMPLATE)}")
    (folder / "thinker.yaml").write_text(
        f"name: lab/thinker\nbackend: fake\ncontext_size: 4096\nchat_template: |-\n{indented(THINKING_TEMPLATE)}"
    )


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


@pytest.fixture(scope="package")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack that serves `demo`, `caller` and `lab/thinker`."""
    folder = tmp_path_factory.mktemp("answering")
    models = folder / "models"
    models.mkdir()
    write_models(models)
    process = StackProcess(folder, models)
    process.start()
    yield process
    process.close()


@pytest.fixture
def demo(answering: StackProcess) -> Iterator[OpenAI]:
    """The official client of that stack."""
    with answering.client() as client:
        yield client


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A stack with keys."""
    folder = tmp_path_factory.mktemp("guarded")
    write_guarded_models(folder / "models")
    process = StackProcess(folder, folder / "models", MILLRACE_KEY_CACHE_SECONDS="0")
    process.start()
    running = Guarded(process)
    yield running
    running.close()


@pytest.fixture
def keys_made(database: Database) -> Iterator[MakeKey]:
    """Creates keys of a tenant in the database of `settings`; all keys are deleted afterwards."""

    def make(tenant: str) -> str:
        made = new_key()
        with database.begin() as connection:
            connection.execute(keys.add_tenant(tenant))
            connection.execute(
                keys.insert_key(
                    id=ids.new_id(KEY), tenant_id=tenant, name="test", prefix=made.prefix, digest=made.digest
                )
            )
        return made.text

    yield make
    with database.begin() as connection:
        connection.execute(text("TRUNCATE api_keys"))


@pytest.fixture
def no_keys(migrated: Engine) -> Iterator[Engine]:
    """A database without keys; keys of the test are deleted."""
    forget = text("TRUNCATE api_keys")
    with migrated.begin() as connection:
        connection.execute(forget)
    yield migrated
    with migrated.begin() as connection:
        connection.execute(forget)
