// The official Node client: models, completions, streams, files, batches, errors.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any" });
const asked = { model: "fake", messages: [{ role: "user", content: "hello" }], temperature: 0 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.ok(models.includes("fake"));

const answer = await client.chat.completions.create(asked);
const text = answer.choices[0].message.content;
assert.ok(text && answer._request_id.startsWith("req_"));

let streamed = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.total_tokens, answer.usage.total_tokens);

const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: asked };
const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line) + "\n"), "in.jsonl"), purpose: "batch" });
assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");
let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
while (!["completed", "failed"].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 200));
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.request_counts.completed, 1);
const output = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
assert.equal(output.response.body.choices[0].message.content, text);
await client.files.delete(file.id);

await assert.rejects(client.chat.completions.create({ ...asked, model: "unknown" }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...asked, temperature: 9 }), (error) => error.param === "temperature");
