"""The stack that bad input is thrown at: real processes, the fake model and the demo model, keys, the default limits."""

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

MARK: Final = "Zanzibar-7731"  # stands in what is refused, and must not come back
CHAT: Final = "/v1/chat/completions"
JSON: Final = {"content-type": "application/json"}
ENDED: Final = ("completed", "failed", "expired", "cancelled")
_OURS: Final = ("api", "engine", "workers")
_COME_AND_GO: Final = (
    "engine.structured.compile_sandbox",
    "workers.validation.report",
)  # the first dies of what would kill an engine


def hello(text: str = "hello") -> list[dict[str, Any]]:
    """Messages that ask something harmless."""
    return [{"role": "user", "content": text}]


def chat(**fields: Any) -> dict[str, Any]:
    """A chat body that would be answered, with these fields; `...` leaves one out."""
    body = {"model": "fake", "messages": hello(), "max_tokens": 4, **fields}
    return {name: value for name, value in body.items() if value is not ...}


class Target:
    """A running stack, asked by a key that may do everything."""

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
        """For what the official client would never send."""
        return self.owner.http

    @property
    def client(self) -> OpenAI:
        """The official client."""
        return self.owner.client

    def close(self) -> None:
        """Everything."""
        self.guarded.close()

    def programs(self) -> dict[str, psutil.Process]:
        """Our own processes that last, by what they run; the databases are left out."""
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
        """Others are answered, by every kind of process."""
        assert self.http.get("/v1/models").status_code == 200
        answer = self.http.post(CHAT, json=chat())
        assert answer.status_code == 200, answer.text

    def refused(
        self, answer: httpx2.Response, status: int, code: str | None, param: str | None = None, *, mark: str = MARK
    ) -> dict[str, Any]:
        """The envelope, with nothing of what was sent in it."""
        error = check_problem(answer, status, code, param)
        assert mark not in answer.text
        assert len(answer.content) < 2000, "an answer is no echo"
        assert answer.headers["content-type"] == "application/json"
        return error

    def batch_of(
        self, content: bytes | Path, endpoint: str = CHAT, *, name: str = "in.jsonl", seconds: float = 60
    ) -> Any:
        """Upload, create, wait; the batch as it ended."""
        batch_id = self.start_batch(self.upload(content, name), endpoint)
        wait_for(lambda: self.client.batches.retrieve(batch_id).status in ENDED, f"{batch_id} ends", seconds)
        return self.client.batches.retrieve(batch_id)

    def upload(self, content: bytes | Path, name: str = "in.jsonl", purpose: str = "batch") -> str:
        """Store a file, from the disk without reading it into memory; returns its id."""
        if isinstance(content, bytes):
            return self.client.files.create(file=(name, content), purpose=purpose).id  # type: ignore[arg-type]
        with content.open("rb") as stream:
            return self.client.files.create(file=(name, stream), purpose=purpose).id  # type: ignore[arg-type]

    def start_batch(self, file_id: str, endpoint: str = CHAT) -> str:
        """Create a batch; returns its id."""
        batch = self.client.batches.create(
            input_file_id=file_id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window="24h",
        )
        return batch.id

    def results(self, file_id: str | None) -> list[Any]:
        """Lines of a result file; none when there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).content.split(b"\n") if line]


def batch_line(custom_id: Any = "a", **fields: Any) -> bytes:
    """A good line of a batch, with these fields; `...` leaves one out."""
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": chat(), **fields}
    return json.dumps({name: value for name, value in line.items() if value is not ...}).encode() + b"\n"
