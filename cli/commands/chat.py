"""`millrace chat`: one question or a conversation, streamed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import ApiKey, AsJson, BaseUrl, connected
from cli.output import print_json, printable, remark

if TYPE_CHECKING:
    from cli.client import Client, Json


def chat(
    question: Annotated[
        str | None,
        typer.Argument(
            help="The question; - reads it from stdin; without one, a conversation starts.", metavar="[QUESTION]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to use.", show_default="the first model")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Sampling temperature; 0 is deterministic.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens in an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the same seed gives the same answer.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Ask a question, or start a conversation; the answer streams. With --json, prints one line for each chunk."""
    if question == "-" or (question is None and not sys.stdin.isatty()):
        question = sys.stdin.read().strip()
        if not question:
            raise CommandFailed("There is no question on stdin.", ExitCode.USAGE)
    with connected(base_url, api_key) as client:
        asked = {
            "model": model or _first_model(client),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        conversation = _Conversation(
            client, {name: value for name, value in asked.items() if value is not None}, system, as_json=as_json
        )
        if question is not None:
            conversation.ask(question)
        else:
            conversation.loop()


class _Conversation:
    """A conversation; an answer that was interrupted is not kept."""

    def __init__(self, client: Client, body: Json, system: str | None, *, as_json: bool) -> None:
        self._client = client
        self._body = body
        self._as_json = as_json
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []  # Any: JSON

    def ask(self, question: str) -> None:
        """Print the answer as it arrives."""
        asked = [*self._messages, {"role": "user", "content": question}]
        parts: list[str] = []
        for chunk in self._client.chat_chunks({**self._body, "messages": asked}):
            if self._as_json:
                print_json(chunk)
            for choice in chunk["choices"]:
                parts.append(choice["delta"].get("content") or "")
                if not self._as_json:
                    print(printable(parts[-1]), end="", flush=True)
        if not self._as_json:
            print()
        self._messages = [*asked, {"role": "assistant", "content": "".join(parts)}]

    def loop(self) -> None:
        """Read questions until Ctrl-D. Ctrl-C stops an answer, or ends the conversation at the prompt."""
        remark(f"Chatting with {self._body['model']}. Ctrl-C stops an answer, Ctrl-D ends the conversation.")
        while True:
            try:
                question = input("> ").strip()
            except EOFError:
                print()
                return
            if not question:
                continue
            try:
                self.ask(question)
            except KeyboardInterrupt:
                print()


def _first_model(client: Client) -> str:
    models = client.get("/models")["data"]
    if not models:
        raise CommandFailed("The server has no models.")
    return str(models[0]["id"])
