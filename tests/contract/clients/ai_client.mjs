// The Vercel AI SDK: text, a stream, and an object by schema.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({ name: "millrace", baseURL: `${process.argv[2]}/v1`, supportsStructuredOutputs: true });
const model = provider("fake");

const answer = await generateText({ model, prompt: "hello", temperature: 0 });
assert.ok(answer.text && answer.usage.outputTokens > 0);
assert.equal(answer.finishReason, "stop");
assert.equal(await streamText({ model, prompt: "hello", temperature: 0 }).text, answer.text);

const schema = z.object({ category: z.enum(["billing", "shipping"]), urgent: z.boolean() });
const { output } = await generateText({ model, prompt: "I was charged twice", output: Output.object({ schema }) });
assert.ok(["billing", "shipping"].includes(output.category));
