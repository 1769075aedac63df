"""pydantic-ai: an agent that returns text, a stream, and an object by schema."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Label(BaseModel):
    """The category and urgency of a ticket."""

    category: Literal["billing", "shipping"]
    urgent: bool


async def main() -> None:
    """Run the three agents."""
    model = OpenAIChatModel("fake", provider=OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="any"))
    agent = Agent(model, instructions="Be brief.", model_settings={"temperature": 0})
    answer = await agent.run("hello")
    assert answer.output, answer
    assert answer.usage.output_tokens > 0, answer
    async with agent.run_stream("hello") as stream:
        assert await stream.get_output() == answer.output
    labelled = await Agent(model, output_type=NativeOutput(Label)).run("I was charged twice")
    assert labelled.output.category in ("billing", "shipping"), labelled


asyncio.run(main())
