"""LangChain: completions, streams, structured output, several prompts at once."""

from __future__ import annotations

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Label(BaseModel):
    """The category and urgency of a ticket."""

    category: Literal["billing", "shipping"]
    urgent: bool


chat = ChatOpenAI(model="fake", base_url=f"{sys.argv[1]}/v1", api_key="any", temperature=0)
answer = chat.invoke("hello")
assert answer.content, answer
assert answer.usage_metadata["output_tokens"] > 0, answer
assert answer.response_metadata["finish_reason"] == "stop", answer
pieces = [piece.content for piece in chat.stream("hello")]
assert "".join(pieces) == answer.content, (pieces, answer)
assert len(chat.batch(["one", "two", "three"])) == 3
label = chat.with_structured_output(Label, method="json_schema").invoke("I was charged twice")
assert isinstance(label, Label), label
