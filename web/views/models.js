// Devices and models now: what is in memory where, what it does, what waits for it, and what an admin may change.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { can, get, post, readModels } from "../lib/api.js";
import { age, bytes, clock, compact, count, duration, now, percent, plural, rate } from "../lib/format.js";
import { poll } from "../lib/sse.js";
import { Badge, Button, CopyButton, Empty, ErrorBox, Facts, Field, Loading, Meter, toast, useTick, useTitle } from "../lib/ui.js";

const EVERY_MS = 2000;
const MANY = 8; // models, from which a search field helps

// The status of /v1/models in plain words, with the tone of its badge.
const STATUS = {
  ready: ["ready", "ok"],
  degraded: ["crashes again and again", "bad"],
  loading: ["loading", "wait"],
  unloaded: ["not in memory", "off"],
  failed: ["does not start", "bad"],
  missing: ["files are missing", "bad"],
  unserved: ["no worker serves it", "bad"],
  unknown: ["unknown", "off"],
};

function statusOf(model) {
  if (model.status === "ready" && model.running_requests) return ["working", "run"];
  return STATUS[model.status] || [model.status, "off"];
}

export default function View() {
  useTitle("Models");
  useTick();
  const [activity, setActivity] = useState(null);
  const [error, setError] = useState(null);
  const [words, setWords] = useState("");
  const read = async () => {
    try {
      const found = await get("/v1/activity");
      setActivity({ ...found, clock: now() - found.read_at });
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  };
  useEffect(() => poll(read, EVERY_MS), []);
  const change = async (model, action) => {
    await post(`/v1/models/${model.split("/").map(encodeURIComponent).join("/")}/${action}`);
    toast(DONE[action](model));
    await read();
    readModels().catch(() => {});
  };
  const title = html`<h1>Models and devices</h1>`;
  if (!activity) return html`${title}${error ? html`<${ErrorBox} error=${error} />` : html`<${Loading} />`}`;
  const { models, devices } = activity;
  const shown = models.filter(({ model }) => model.toLowerCase().includes(words.trim().toLowerCase()));
  return html`${title}
    <${ErrorBox} error=${error?.status ? error : null} title="These numbers may be old." />
    <${Changes} models=${models} />
    <div class="stack models">
      <section aria-labelledby="devices"><h2 id="devices">Devices</h2>
        ${devices.length
          ? html`<div class="grid">${devices.map((each) => html`<${Device} key=${`${each.host} ${each.device}`} ...${each} late=${activity.clock} />`)}</div>`
          : html`<p class="note">No worker reports. Start one: <code>millrace serve</code>, or <code>millrace worker</code> on another machine.</p>`}
      </section>
      <section aria-labelledby="models"><h2 id="models">Models</h2>
        ${models.length > MANY && html`<${Field} label="Find a model">${(props) => html`<input ...${props} type="search" value=${words} onInput=${(event) => setWords(event.target.value)} />`}<//>`}
        ${!models.length && html`<${Empty} title="There is no model yet"><p>Add one with the command below. It appears here by itself.</p><//>`}
        ${models.length > 0 && !shown.length && html`<p class="muted">No model has this in its name.</p>`}
        <div class="stack">${shown.map((each) => html`<${Model} key=${each.model} model=${each} change=${change} />`)}</div>
      </section>
      <${Help} isOpen=${!models.length} />
    </div>`;
}

const DONE = {
  load: (model) => `${model} will be loaded.`,
  unload: (model) => `${model} leaves memory once its running requests have ended.`,
  reload: (model) => `${model} will be loaded again once its running requests have ended.`,
  pin: (model) => `${model} is pinned: it stays in memory.`,
  unpin: (model) => `${model} is not pinned any more.`,
};

// Read changes of status to people who do not see them.
function Changes({ models }) {
  const last = useRef(null);
  const [text, setText] = useState("");
  useEffect(() => {
    const states = Object.fromEntries(models.map((each) => [each.model, (STATUS[each.status] || [each.status])[0]]));
    const changed = Object.entries(states).filter(([model, state]) => last.current && last.current[model] !== state);
    last.current = states;
    if (changed.length) setText(changed.map(([model, state]) => `${model}: ${state}`).join(", "));
  }, [models]);
  return html`<p class="sr" role="status">${text}</p>`;
}

function Device({ host, device, card, total_bytes: total, free_bytes: free, budget_bytes: budget, engine_bytes: ours, engines, seen_at: seenAt, is_silent: isSilent, late }) {
  const used = total === null || free === null ? null : total - free;
  return html`<article class="card" aria-label=${`Device ${device} of ${host}`}>
    <div class="row between"><h3>${device} <span class="muted">on ${host}</span></h3>${isSilent && html`<${Badge} tone="bad">silent for ${age(seenAt + late)}<//>`}</div>
    <p class="muted small">${card || "Unknown hardware"}</p>
    <dl class="bars">
      ${used !== null && html`<${Bar} name="Memory in use" value=${used} max=${total} text=${`${bytes(used)} of ${bytes(total)}`} />`}
      <${Bar} name="Taken by models" value=${ours} max=${budget ?? total} text=${budget === null ? bytes(ours) : `${bytes(ours)} of at most ${bytes(budget)}`} />
    </dl>
    ${engines.length
      ? html`<ul class="plain">${engines.map(({ model, state, memory_bytes: size }) => html`<li class="row between"><span class="wrap">${model}${state === "loading" && html` <span class="muted">(loading)</span>`}</span><span class="num muted">${bytes(size)}</span></li>`)}</ul>`
      : html`<p class="muted small">No model is in its memory.</p>`}
  </article>`;
}

const Bar = ({ name, value, max, text }) => html`<div><dt>${name}</dt><dd><span>${text}</span><${Meter} label=${name} value=${value} max=${max} /></dd></div>`;

function Model({ model: it, change }) {
  const [status, tone] = statusOf(it);
  const isIn = it.devices.length > 0;
  const facts = isIn ? [...work(it), ...queues(it)] : queues(it).filter(([, value]) => value !== NOTHING);
  return html`<article class="card" aria-label=${`Model ${it.model}`}>
    <div class="row between top">
      <div class="row grow"><h3 class="wrap">${it.model}</h3><${Badge} tone=${tone}>${status}<//>${it.pinned && html`<${Badge}>pinned<//>`}</div>
      ${can("admin") && html`<${Actions} it=${it} isIn=${isIn} change=${change} />`}
    </div>
    ${it.reason && it.status !== "unloaded" && html`<p class="muted wrap">${sentence(it.reason)}</p>`}
    ${it.warning && html`<p class="note wrap">${sentence(it.warning)}</p>`}
    ${facts.length > 0 && html`<${Facts} items=${facts} />`}
    ${!isIn && it.status === "unloaded" && html`<p class="muted small">It loads when a request needs it.</p>`}
    <${Trouble} it=${it} />
  </article>`;
}

const NOTHING = "none";
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

const Part = ({ text, ...rest }) => html`<span>${text}</span><${Meter} ...${rest} />`;

function work({ model, slots, busy_slots: busy, running_requests: running, tokens_per_second: speed, kv_cache: kv, tokens, memory_bytes: size, devices }) {
  const speedOf = (value) => (value ? rate(value) : running ? "–" : "idle");
  const { used_tokens: used, total_tokens: total } = kv || {};
  return [
    slots === null
      ? ["Running requests", count(running)]
      : ["Busy slots", html`<${Part} text=${`${count(busy)} of ${count(slots)}`} label=${`Busy slots of ${model}`} value=${busy} max=${slots} />`],
    ["Generates", speedOf(speed.output)],
    ["Reads prompts", speedOf(speed.prompt)],
    kv && ["KV cache", html`<${Part} text=${`${percent(used, total)} of ${compact(total)}`} label=${`KV cache of ${model}`} value=${used} max=${total} />`],
    kv && ["Prefix cache hits", html`<span title=${`${count(tokens.cached)} of ${count(tokens.prompt)} prompt tokens since it was loaded`}>${tokens.prompt ? percent(tokens.cached, tokens.prompt) : "–"}</span>`],
    ["Memory", size ? `${bytes(size)} on ${devices.join(", ")}` : null],
  ].filter(Boolean);
}

function queues({ queue: { chats, lines }, running_batches: running, waiting_batches: waiting }) {
  const since = ({ oldest_seconds: seconds }, word) => (seconds === null ? "" : `, ${word} ${duration(Math.round(seconds))}`);
  return [
    ["Chats waiting", chats.waiting ? `${count(chats.waiting)}${since(chats, "oldest")}` : NOTHING],
    ["Lines left", lines.waiting ? html`${count(lines.waiting)} in <a href="#/batches">${plural(running + waiting, "batch", "batches")}</a>${since(lines, "one waits")}` : NOTHING],
  ];
}

function Trouble({ it: { last_crash: crash, quarantined_requests: { suspect, refused } } }) {
  return html`${crash && html`<p class="small wrap"><strong>Last crash</strong> <time datetime=${new Date(1000 * crash.at).toISOString()} title=${clock(crash.at)}>${age(crash.at)} ago</time> on ${crash.host}/${crash.device}: ${crash.reason}.</p>`}
    ${suspect + refused > 0 && html`<p class="small wrap"><strong>In quarantine</strong> ${[suspect && `${plural(suspect, "request")} that ran in a crash and will run alone`, refused && `${plural(refused, "request")} refused after repeated crashes`].filter(Boolean).join(", ")}.</p>`}`;
}

// The same three buttons in every state, so that the focus stays where it is.
function Actions({ it, isIn, change }) {
  const act = (action, text, isOff = false, title = "") => html`<${Button} kind="small" aria-label=${`${text} ${it.model}`} title=${title} disabled=${isOff} onClick=${() => change(it.model, action)}>${text}<//>`;
  return html`<div class="row" role="group" aria-label=${`Actions on ${it.model}`}>
    ${isIn ? act("unload", "Unload", it.pinned, it.pinned ? "It is pinned. Unpin it first." : "") : act("load", "Load", it.load_requested)}
    ${act("reload", "Reload", !isIn)}
    ${it.pinned ? act("unpin", "Unpin") : act("pin", "Pin")}
  </div>`;
}

const COMMANDS = [
  ["millrace models add hf:ORG/REPO", "a repository of Hugging Face with a GGUF file; the quantization that fits is chosen"],
  ["millrace models add /data/NAME.gguf", "a file of the server's machine, or a folder"],
];

function Help({ isOpen }) {
  return html`<details class="card" open=${isOpen}>
    <summary>How to add a model</summary>
    <p>Run a command on the server. A running server takes the model up by itself, and it appears here.</p>
    <ul class="plain">${COMMANDS.map(([command, text]) => html`<li><div class="row"><code>${command}</code><${CopyButton} text=${command} label="Copy" /></div><p class="hint">${text}</p></li>`)}</ul>
    <p class="hint">A model loads when a request needs it, and leaves when others need the memory. A pinned one stays.</p>
  </details>`;
}
