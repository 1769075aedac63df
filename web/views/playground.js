// Playground: chat with a model, see how fast it answers, and take the request along as a command, a program or a batch.
import { html, signal, useEffect, useRef, useState } from "../lib/html.js";
import { key, models, readModels, send } from "../lib/api.js";
import { count, duration } from "../lib/format.js";
import { go } from "../lib/router.js";
import { events } from "../lib/sse.js";
import { Button, CopyButton, Dialog, Empty, ErrorBox, Field, Select, toast, useTitle } from "../lib/ui.js";
import { asCurl, asPython } from "../lib/snippets.js";

const CHAT = "/v1/chat/completions";
const NUMBERS = [
  // name, label, hint, step
  ["temperature", "Temperature", "0 to 2; 0 never varies", 0.1],
  ["top_p", "Top p", "over 0, to 1", 0.05],
  ["max_tokens", "Max tokens", "of the answer", 1],
  ["seed", "Seed", "repeats an answer", 1],
];
const MORE = [
  ["top_k", "Top k", "0 keeps all", 1],
  ["min_p", "Min p", "0 to 1", 0.01],
  ["frequency_penalty", "Frequency penalty", "-2 to 2", 0.1],
  ["presence_penalty", "Presence penalty", "-2 to 2", 0.1],
  ["repeat_penalty", "Repeat penalty", "over 0, to 2", 0.05],
];
const EXAMPLE = JSON.stringify({ type: "object", properties: { category: { enum: ["billing", "shipping", "technical", "account"] }, priority: { enum: ["low", "medium", "high"] } }, required: ["category", "priority"], additionalProperties: false }, null, 2);

// What is typed and said, which outlives the view. A turn is {id, role, text, …}; an answer has {reasoning, calls, stats, finish, error} too.
const form = signal({ model: "", system: "", draft: "", stop: "", schema: "", tools: "" });
const turns = signal([]);
const running = signal(null); // the AbortController of the answer that arrives
let lastId = 0;

const set = (patch) => (form.value = { ...form.value, ...patch });
const model = () => (chatModels().find(({ id }) => id === form.value.model) || chatModels().find(({ status }) => status === "ready") || chatModels()[0])?.id;
const chatModels = () => models.value.filter((each) => each.endpoints.includes(CHAT));
const change = (id, patch) => (turns.value = turns.value.map((turn) => (turn.id === id ? { ...turn, ...patch } : turn)));

// The request for the answer to `said`. Throws the error of a field that is not JSON; its `param` names the field.
function bodyOf(said) {
  const { system, stop, schema, tools } = form.value;
  const messages = said.map(({ role, text, calls }) => ({ role, content: text, ...(calls?.length ? { tool_calls: calls } : {}) }));
  const body = { model: model(), messages: system.trim() ? [{ role: "system", content: system }, ...messages] : messages };
  for (const [name] of [...NUMBERS, ...MORE]) if (form.value[name]) body[name] = Number(form.value[name]);
  const stops = stop.split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (schema.trim()) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed("schema", schema), strict: true } };
  if (tools.trim()) {
    body.tools = parsed("tools", tools);
    if (form.value.tool_choice) body.tool_choice = form.value.tool_choice;
  }
  return body;
}

function parsed(param, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw Object.assign(new Error(`This is not JSON: ${error.message}`), { param });
  }
}

// Ask for the answer to `said`, and show it as it arrives.
async function answer(said) {
  const body = bodyOf(said);
  const id = (lastId += 1);
  const stopping = new AbortController();
  running.value = stopping;
  const turn = { id, role: "assistant", text: "", reasoning: "", calls: [], stats: null, finish: null, error: null };
  turns.value = [...said, turn];
  const began = performance.now();
  let first = null;
  let usage = null;
  let shown = 0;
  let pieces = 0; // of text: about one for each token, until the usage has their number
  const stats = () => {
    const seconds = (performance.now() - first) / 1000;
    const tokens = usage?.completion_tokens ?? pieces;
    return first === null ? { usage } : { first: (first - began) / 1000, usage, speed: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null };
  };
  const show = () => {
    shown = performance.now();
    change(id, { ...turn, calls: [...turn.calls], stats: stats() });
  };
  try {
    const json = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await send("POST", CHAT, { json, signal: stopping.signal });
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), chunk.error);
      usage = chunk.usage || usage;
      const [choice] = chunk.choices;
      if (!choice) continue;
      const { content, reasoning_content: thought, tool_calls: calls = [] } = choice.delta;
      if (content || thought || calls.length) {
        first ??= performance.now();
        pieces += 1;
      }
      turn.text += content || "";
      turn.reasoning += thought || "";
      for (const { index, function: part, ...call } of calls) {
        const known = (turn.calls[index] ??= { ...call, function: { name: "", arguments: "" } });
        known.function.name += part?.name || "";
        known.function.arguments += part?.arguments || "";
      }
      turn.finish = choice.finish_reason || turn.finish;
      if (performance.now() - shown > 40) show();
    }
    show();
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else turn.error = error;
    show();
  } finally {
    if (running.value === stopping) running.value = null;
  }
}

export default function Playground() {
  useTitle("Playground");
  const [wrong, setWrong] = useState(null); // the error of a field
  useEffect(() => void readModels().catch(() => {}), []);
  if (!chatModels().length) {
    return html`<h1>Playground</h1><${Empty} title="No model that chats is served"><p>Put a model file into the models folder, or see what the models do.</p><a class="button" href="#/models">Models</a><//>`;
  }
  return html`<div class="row between"><h1>Playground</h1>
      <${Select} label="Model" value=${model()} options=${chatModels().map(({ id }) => [id, id])} onChange=${(name) => set({ model: name })} /></div>
    <div class="playground" onPaste=${refuse} onDrop=${refuse}>
      <section class="stack" aria-label="Conversation">
        <${Turns} onError=${setWrong} />
        <${Composer} onError=${setWrong} />
        <${Take} onError=${setWrong} />
      </section>
      <${Settings} wrong=${wrong} />
    </div>`;
}

// Models here read text: an image is refused with the reason; text that is pasted with one is kept.
function refuse(event) {
  const data = event.clipboardData || event.dataTransfer;
  if (![...data.files].some((file) => file.type.startsWith("image/")) || data.getData("text/plain")) return;
  event.preventDefault();
  toast("The models here read text only. Describe the image in words, or paste its text.", "bad");
}

function Settings({ wrong }) {
  const text = (name) => ({ value: form.value[name] || "", onInput: (event) => set({ [name]: event.target.value }) });
  const number = ([name, label, hint, step]) => html`<${Field} key=${name} label=${label} hint=${hint} error=${errorAt(name)}>${(props) => html`<input ...${props} type="number" step=${step} placeholder="model’s own" ...${text(name)} />`}<//>`;
  const errorAt = (name) => wrong?.param === name && wrong.message;
  const isOdd = MORE.some(([name]) => form.value[name]) || form.value.stop || form.value.tools;
  return html`<section class="card" aria-label="Settings">
    <${Field} label="System prompt">${(props) => html`<textarea ...${props} rows="3" ...${text("system")}></textarea>`}<//>
    <div class="pairs">${NUMBERS.map(number)}</div>
    <details open=${Boolean(form.value.schema)}><summary>JSON schema of the answer</summary>
      <${Field} label="JSON schema" error=${errorAt("schema")}>${(props) => html`<textarea ...${props} class="mono" rows="8" spellcheck="false" ...${text("schema")}></textarea>`}<//>
      <${Button} kind="small" onClick=${() => set({ schema: EXAMPLE })}>Use an example<//>
    </details>
    <details open=${Boolean(isOdd)}><summary>More parameters</summary>
      <div class="pairs">${MORE.map(number)}</div>
      <${Field} label="Stop strings" hint="One per line; the answer ends before the first of them.">${(props) => html`<textarea ...${props} class="mono" rows="2" ...${text("stop")}></textarea>`}<//>
      <${Select} label="Tool calls" value=${form.value.tool_choice || ""} options=${[["", "as the model likes"], ["required", "at least one"], ["none", "none"]]} onChange=${(choice) => set({ tool_choice: choice })} />
      <${Field} label="Tools" hint="A JSON list of functions, as in OpenAI’s API." error=${errorAt("tools")}>${(props) => html`<textarea ...${props} class="mono" rows="3" spellcheck="false" ...${text("tools")}></textarea>`}<//>
    </details>
  </section>`;
}

function Turns({ onError }) {
  const [edited, setEdited] = useState(null);
  if (!turns.value.length) return html`<${Empty} title="Say something to the model"><p>The answer streams in here, with its speed. Nothing is stored on the server.</p><//>`;
  // Ask again behind the turns before `index`.
  const again = (index) => attempt(() => answer(turns.value.slice(0, index)), onError);
  return html`<ol class="turns">${turns.value.map((turn, index) => {
    const isUser = turn.role === "user";
    const isLive = running.value && index === turns.value.length - 1;
    return html`<li key=${turn.id} class=${`card ${turn.role}`}>
      <div class="row between"><strong>${isUser ? "You" : "Model"}</strong>
        ${!running.value && html`<span class="row">
          ${edited !== turn.id && html`<${Button} kind="small quiet" onClick=${() => setEdited(turn.id)}>Edit<//>`}
          ${!isUser && html`<${Button} kind="small quiet" onClick=${() => again(index)}>Regenerate<//>`}
          <${Button} kind="small quiet" onClick=${() => void (turns.value = turns.value.slice(0, index))}>Remove from here<//></span>`}
      </div>
      ${edited === turn.id ? html`<${Edit} turn=${turn} onEnd=${(isChanged) => {
        setEdited(null);
        if (isChanged && isUser) again(index + 1);
      }} />` : html`<${Answer} turn=${turn} isLive=${isLive} />`}
      ${turn.error && html`<${ErrorBox} error=${turn.error}> <${Button} kind="small" onClick=${() => again(index)}>Try again<//><//>`}
    </li>`;
  })}</ol>`;
}

function Edit({ turn, onEnd }) {
  const [text, setText] = useState(turn.text);
  const save = () => {
    change(turn.id, { text });
    onEnd(text !== turn.text);
  };
  return html`<${Field} label="Text">${(props) => html`<textarea ...${props} rows="4" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>`}<//>
    <div class="row"><${Button} kind="primary small" onClick=${save}>${turn.role === "user" ? "Save and answer again" : "Save"}<//><${Button} kind="small" onClick=${() => onEnd(false)}>Leave it<//></div>`;
}

const FINISH = { length: "cut at max tokens", stopped: "stopped by you", tool_calls: "calls tools", content_filter: "filtered" };

function Answer({ turn: { role, text, reasoning, calls = [], finish, stats, error }, isLive }) {
  const facts = stats && [
    stats.first && `first token after ${duration(stats.first)}`,
    stats.speed && `${stats.speed < 10 ? stats.speed.toFixed(1) : count(Math.round(stats.speed))} tokens/s`,
    stats.usage && `${count(stats.usage.prompt_tokens)} tokens in, ${count(stats.usage.completion_tokens)} out`,
    FINISH[finish],
  ].filter(Boolean).join(" · ");
  return html`
    ${isLive && !text && !reasoning && !calls.length && html`<p class="muted">Waiting for the first token…</p>`}
    ${reasoning && html`<details class="reasoning" open=${!text}><summary>Reasoning</summary><div class="wrap muted">${reasoning}</div></details>`}
    <div class="wrap" role=${role === "assistant" ? "log" : undefined} aria-label=${role === "assistant" ? "Answer" : undefined} aria-busy=${isLive ? "true" : undefined}>${text}${isLive && html`<span class="caret" aria-hidden="true"></span>`}</div>
    ${calls.map((call) => html`<pre class="call"><code>${call.function.name}(${call.function.arguments})</code></pre>`)}
    ${!text && !isLive && !error && !calls.length && !reasoning && html`<p class="muted">An empty answer.</p>`}
    ${facts && html`<p class="hint">${facts}</p>`}`;
}

// Run `call`; its error is shown as a message, and at the field that it names.
async function attempt(call, onError) {
  onError(null);
  try {
    await call();
  } catch (error) {
    onError(error);
    toast(error.message, error.param ? "wait" : "bad");
  }
}

function Composer({ onError }) {
  const { draft } = form.value;
  const input = useRef(null);
  const ask = () => attempt(async () => {
    if (!draft.trim() || running.value) return;
    const said = [...turns.value.filter((turn) => !turn.error), { id: (lastId += 1), role: "user", text: draft }];
    bodyOf(said); // wrong JSON is found before the text leaves its field
    set({ draft: "" });
    await answer(said);
  }, onError);
  const typed = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  };
  useEffect(() => input.current.focus({ preventScroll: true }), []);
  return html`<div class="card composer">
    <${Field} label="Your message" hint="Enter sends, Shift and Enter begins a new line.">${(props) => html`
      <textarea ...${props} ref=${input} rows="3" value=${draft} onInput=${(event) => set({ draft: event.target.value })} onKeyDown=${typed}></textarea>`}<//>
    <div class="row">
      ${running.value
        ? html`<${Button} kind="danger" onClick=${() => running.value?.abort()}>Stop<//>`
        : html`<button type="button" class="button primary" disabled=${!draft.trim()} onClick=${ask}>Send</button>`}
      ${turns.value.length > 0 && !running.value && html`<${Button} kind="quiet" onClick=${() => void (turns.value = [])}>New conversation<//>`}
    </div>
  </div>`;
}

// The request as it would be sent now, to take along.
function Take({ onError }) {
  const [shown, setShown] = useState(null);
  const said = () => {
    const kept = turns.value.filter((turn) => !turn.error);
    if (kept.at(-1)?.role === "assistant") kept.pop();
    if (form.value.draft.trim()) return [...turns.value.filter((turn) => !turn.error), { role: "user", text: form.value.draft }];
    return kept;
  };
  const isEmpty = !form.value.draft.trim() && !turns.value.length;
  const show = (title, write, path) => () => attempt(async () => {
    const text = write(location.origin + path, bodyOf(said()), Boolean(key.value));
    const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    setShown({ title, text, isCopied });
  }, onError);
  const batch = () => attempt(async () => {
    const body = bodyOf(said());
    const { offered, job } = await import("./new_batch.js");
    const { model: name, messages, response_format: format, tools, ...parameters } = body;
    const line = { custom_id: "prompt", method: "POST", url: CHAT, body };
    offered.value = { model: name, system: form.value.system, prompt: messages.at(-1)?.content || "", schema: format?.json_schema.schema, parameters, line };
    if (job.value && !job.value.kind) job.value = null;
    go(["new"]);
  }, onError);
  return html`<div class="row take">
    <${Button} kind="small" disabled=${isEmpty} onClick=${show("The request for curl", asCurl, CHAT)}>Copy as curl<//>
    <${Button} kind="small" disabled=${isEmpty} onClick=${show("The request in Python", asPython, "/v1")}>Copy as Python<//>
    <${Button} kind="small" disabled=${isEmpty} onClick=${batch}>Make a batch of this prompt<//>
    ${shown && html`<${Dialog} title=${shown.title} isWide onClose=${() => setShown(null)}>
      <pre tabindex="0"><code>${shown.text}</code></pre><p class="row end">${shown.isCopied ? html`<span role="status">Copied.</span>` : "Copy it from here."} <${CopyButton} text=${shown.text} label="Copy again" /></p>
    <//>`}
  </div>`;
}
