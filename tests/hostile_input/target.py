"""The stack that receives bad input: real processes, the fake model and the demo model, keys, the default limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
from openai import OpenAI

from core.settings import ROOT
from tests.support.check import check_problem
from tests.support.guarded import Guarded, Key
from tests.support.stack import StackProcess, wait_for

MARK: Final = "Zanzibar-7731"  # part of the bad input; must not be in a response
CHAT: Final = "/v1/chat/completions"
JSON: Final = {"content-type": "application/json"}
ENDED: Final = ("completed", "failed", "expired", "cancelled")
_OURS: Final = ("api", "engine", "workers")
_COME_AND_GO: Final = (
    "engine.structured.compile_sandbox",
    "workers.validation.report",
)  # the first process dies of everything that would end an engine


def hello(text: str = "hello") -> list[dict[str, Any]]:
    """Return harmless messages."""
    return [{"role": "user", "content": text}]


def chat(**fields: Any) -> dict[str, Any]:
    """Return a valid chat body with these fields changed; `...` removes one."""
    body = {"model": "fake", "messages": hello(), "max_tokens": 4, **fields}
    return {name: value for name, value in body.items() if value is not ...}


class Target:
    """A running stack, with a key that has all scopes."""

    def __init__(self, folder: Path, **settings: str) -> None:
        models = folder / "models"
        models.mkdir(parents=True)
        (models / "fake.yaml").write_text(
            "name: fake\nbackend: fake\nembeddings: true\nslots: 8\ncontext_size: 4096\naliases: [also-fake]\n"
        )
        (models / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 2\nstep_seconds: 0.02\n")
        weights = ROOT / "models" / "demo.gguf"
        (models / "demo.yaml").write_text(
            f"name: demo\nembeddings: true\nparameters: {{model: {weights}, temperature: 0}}\n"
            "context_size: 512\nslots: 4\nthreads: 1\n"
        )
        self.process = StackProcess(folder, models, MILLRACE_KEY_CACHE_SECONDS="0", **settings)
        self.process.start()
        self.guarded = Guarded(self.process)
        self.url = self.process.url
        self.address = ("127.0.0.1", int(self.url.rsplit(":", 1)[1]))

    @property
    def owner(self) -> Key:
        """The key of the administrator."""
        return self.guarded.owner

    @property
    def http(self) -> httpx2.Client:
        """A plain HTTP client, for requests that the official client cannot send."""
        return self.owner.http

    @property
    def client(self) -> OpenAI:
        """The official client."""
        return self.owner.client

    def close(self) -> None:
        """Close the clients and the stack."""
        self.guarded.close()

    def programs(self) -> dict[str, psutil.Process]:
        """Return the long-lived processes of Millrace by their commands, without the databases."""
        found = {}
        for process in self.process.descendants():
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            module = words[words.index("-m") + 1] if "-m" in words else ""
            if module.split(".")[0] in _OURS and module not in _COME_AND_GO:
                found[f"{process.pid} {module}"] = process
        return found

    def check_alive(self) -> None:
        """Check that every kind of process answers other requests."""
        assert self.http.get("/v1/models").status_code == 200
        answer = self.http.post(CHAT, json=chat())
        assert answer.status_code == 200, answer.text

    def refused(
        self, answer: httpx2.Response, status: int, code: str | None, param: str | None = None, *, mark: str = MARK
    ) -> dict[str, Any]:
        """Check the error envelope, which must not contain the input."""
        error = check_problem(answer, status, code, param)
        assert mark not in answer.text
        assert len(answer.content) < 2000, "the error repeats the input"
        assert answer.headers["content-type"] == "application/json"
        return error

    def batch_of(
        self, content: bytes | Path, endpoint: str = CHAT, *, name: str = "in.jsonl", seconds: float = 60
    ) -> Any:
        """Upload a file, create a batch and wait; return the batch after its end."""
        batch_id = self.start_batch(self.upload(content, name), endpoint)
        wait_for(lambda: self.client.batches.retrieve(batch_id).status in ENDED, f"{batch_id} ends", seconds)
        return self.client.batches.retrieve(batch_id)

    def upload(self, content: bytes | Path, name: str = "in.jsonl", purpose: str = "batch") -> str:
        """Store a file from the disk without reading it into memory; return its id."""
        if isinstance(content, bytes):
            return self.client.files.create(file=(name, content), purpose=purpose).id  # type: ignore[arg-type]
        with content.open("rb") as stream:
            return self.client.files.create(file=(name, stream), purpose=purpose).id  # type: ignore[arg-type]

    def start_batch(self, file_id: str, endpoint: str = CHAT) -> str:
        """Create a batch; return its id."""
        batch = self.client.batches.create(
            input_file_id=file_id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window="24h",
        )
        return batch.id

    def results(self, file_id: str | None) -> list[Any]:
        """Return the lines of a result file; none without a file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).content.split(b"\n") if line]


def batch_line(custom_id: Any = "a", **fields: Any) -> bytes:
    """Return a valid batch line with these fields changed; `...` removes one."""
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": chat(), **fields}
    return json.dumps({name: value for name, value in line.items() if value is not ...}).encode() + b"\n"
