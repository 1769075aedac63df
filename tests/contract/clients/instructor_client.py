"""instructor: one object and several objects by schema."""

from __future__ import annotations

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Label(BaseModel):
    """The category and urgency of a ticket."""

    category: Literal["billing", "shipping"]
    urgent: bool


server = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="any")
ticket = [{"role": "user", "content": "I was charged twice"}]
client = instructor.from_openai(server, mode=instructor.Mode.JSON_SCHEMA)
label = client.chat.completions.create(model="fake", response_model=Label, messages=ticket, max_retries=1)
assert label.category in ("billing", "shipping"), label
tickets = client.chat.completions.create_iterable(model="fake", response_model=Label, messages=ticket, max_retries=1)
assert all(isinstance(each, Label) for each in tickets)
