"""LiteLLM: completions, streams, files and batches."""

from __future__ import annotations

import json
import sys
import time

import litellm

litellm.telemetry = False
given = {"api_base": f"{sys.argv[1]}/v1", "api_key": "any"}
hello = [{"role": "user", "content": "hello"}]
answer = litellm.completion(model="openai/fake", messages=hello, temperature=0, **given)
text = answer.choices[0].message.content
assert text, answer
stream = litellm.completion(model="openai/fake", messages=hello, temperature=0, stream=True, **given)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
try:
    litellm.completion(model="openai/unknown", messages=hello, **given)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("an unknown model answered")

body = {"model": "fake", "messages": hello, "temperature": 0}
line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
lines = ("in.jsonl", json.dumps(line).encode() + b"\n")
uploaded = litellm.create_file(file=lines, purpose="batch", custom_llm_provider="openai", **given)
batch = litellm.create_batch(
    completion_window="24h",
    endpoint="/v1/chat/completions",
    input_file_id=uploaded.id,
    custom_llm_provider="openai",
    **given,
)
while batch.status not in ("completed", "failed"):
    time.sleep(0.2)
    batch = litellm.retrieve_batch(batch_id=batch.id, custom_llm_provider="openai", **given)
assert batch.request_counts.completed == 1, batch
output = litellm.file_content(file_id=batch.output_file_id, custom_llm_provider="openai", **given)
assert json.loads(output.content)["response"]["body"]["choices"][0]["message"]["content"] == text
