// New batch: a file is dropped or chosen, sent, checked by the server, and started. A table goes on in map_form.js.
import { html, signal, useEffect, useRef, useState } from "../lib/html.js";
import { can, models, post, readModels } from "../lib/api.js";
import { bytes, clock, count, duration, plural } from "../lib/format.js";
import { go } from "../lib/router.js";
import { Badge, Button, ErrorBox, Facts, Field, Select, useTitle } from "../lib/ui.js";
import { FileLines, placeOf, withModel } from "../lib/file_lines.js";
import { kindOf } from "../lib/file_kind.js";
import { idempotent, Resumable } from "../lib/resumable.js";
import { dropped } from "../app.js";
import { MapForm } from "./map_form.js";

const LISTED = 20; // errors of a group before "more"
const WINDOWS = [["1h", "1 hour"], ["6h", "6 hours"], ["24h", "24 hours"], ["3d", "3 days"], ["7d", "7 days"]];
const PRIORITIES = [["-50", "low"], ["0", "normal"], ["50", "high"], ["100", "highest"]];

// The file in work, which outlives the view; null without one.
// {id, file, lines, stopping, kind, reason, sender, share, stage: "read" | "send" | "check" | "ready", report, error, options}
export const job = signal(null);
export const offered = signal(null); // a prompt of the playground: {system, prompt, model, schema, parameters, line}
let lastId = 0;

export const change = (id, patch) => {
  if (job.value?.id === id) job.value = { ...job.value, ...patch };
};

export async function take(file) {
  const kept = job.value?.file.name === file.name && job.value.options; // the mended file
  leave();
  const id = (lastId += 1);
  const options = kept || { name: file.name.replace(/\.[^.]*$/, "").slice(0, 512) || file.name, window: "24h", priority: "0" };
  job.value = { id, file, lines: new FileLines(file), stopping: new AbortController(), stage: "read", options };
  change(id, await kindOf(file));
  if (job.value?.id === id && job.value.kind) await advance();
}

function leave() {
  job.value?.stopping.abort();
  job.value?.sender?.discard();
  job.value = null;
}

// Send the file, or the rest of it, and have it checked.
async function advance() {
  const { id, file, kind, stopping: { signal: abort } } = job.value;
  const isBatch = kind === "batch";
  const name = isBatch && !/\.jsonl$/i.test(file.name) ? `${file.name}.jsonl` : file.name;
  const sender = job.value.sender || new Resumable(file, name, isBatch ? "batch" : "user_data");
  change(id, { sender, stage: "send", error: null });
  try {
    const input_file_id = await sender.send({ onProgress: (share) => change(id, { share }), signal: abort });
    change(id, { stage: isBatch ? "check" : "ready" });
    if (isBatch) change(id, { stage: "ready", report: await post("/v1/batches/validate", { input_file_id }, { signal: abort }) });
  } catch (error) {
    if (error.name !== "AbortError") change(id, { error });
  }
}

// The fields that every new batch has, from what was chosen.
export const chosen = ({ name, window, priority }) => ({
  completion_window: window,
  priority: Number(priority),
  metadata: name.trim() ? { name: name.trim() } : undefined,
});

// Start the file in work at `path`, and show its batch.
export async function start(path, body) {
  const batch = await post(path, body, { headers: idempotent(path, body) });
  job.value = null; // the file belongs to the batch now
  offered.value = null;
  go(["batches", batch.id]);
}

export default function NewBatch() {
  useTitle("New batch");
  useEffect(() => {
    const look = () => {
      const { file } = dropped;
      dropped.file = null;
      if (file) take(file);
    };
    look();
    readModels().catch(() => {});
    addEventListener("millrace-drop", look);
    return () => removeEventListener("millrace-drop", look);
  }, []);
  const { file, kind, stage, report } = job.value || {};
  return html`<h1>New batch</h1>
    <div class="stack new-batch">
      ${!file && html`<${Offer} />`}
      <${Drop} isSmall=${Boolean(kind)} />
      ${file && html`<${Sent} />`}
      ${report && html`<${Report} report=${report} /><${Start} report=${report} />`}
      ${kind === "table" && stage === "ready" && html`<${MapForm} key=${job.value.id} />`}
    </div>`;
}

function Drop({ isSmall }) {
  const input = useRef(null);
  const [isOver, setOver] = useState(false);
  useEffect(() => {
    const over = (event) => setOver(event.type === "dragover");
    const leaving = (event) => event.relatedTarget || setOver(false);
    const handlers = [["dragover", over], ["drop", over], ["dragleave", leaving]];
    handlers.forEach(([name, handler]) => addEventListener(name, handler));
    return () => handlers.forEach(([name, handler]) => removeEventListener(name, handler));
  }, []);
  const choose = (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // the same file may be chosen again after it was mended
    if (file) take(file);
  };
  return html`<div class=${`card drop ${isSmall ? "small" : ""} ${isOver ? "over" : ""}`}>
    ${!isSmall && html`<p class="big">Drop a file here</p>
      <p class="muted">A table (CSV, TSV, Excel, Parquet, JSON Lines) of which each row becomes a request, or JSON Lines with requests as for OpenAI’s Batch API.</p>`}
    <button type="button" class=${`button ${isSmall ? "" : "primary"}`} onClick=${() => input.current.click()}>${isSmall ? "Choose another file" : "Choose a file"}</button>
    <input type="file" hidden ref=${input} onChange=${choose} />
    ${isSmall && html`<span class="muted small">or drop one anywhere</span>`}
    ${!can("files") && html`<${ErrorBox} error=${new Error("Your key may not store files, which a batch needs. Ask for one with the scope “files”.")} />`}
  </div>`;
}

// A prompt of the playground waits for its table, or runs as a batch of one line.
function Offer() {
  const prompt = offered.value;
  if (!prompt) return null;
  const single = () => take(new File([`${JSON.stringify(prompt.line)}\n`], "prompt.jsonl"));
  return html`<div class="note row between">
    <span>The prompt of the playground is ready. Drop a table, and every row gets it.</span>
    <span class="row"><${Button} kind="small" onClick=${single}>Make a batch of this one request<//>
    <${Button} kind="small quiet" onClick=${() => void (offered.value = null)}>Forget it<//></span>
  </div>`;
}

// The file, and how far it is.
function Sent() {
  const { file, stage, share = 0, error, reason, table } = job.value;
  const isBusy = !reason && !error && stage !== "ready";
  const text = { send: `Sending, ${Math.floor(100 * share)} %`, check: "Checking every line…", ready: "Sent" }[stage] || "Reading…";
  return html`<section class="card stack" aria-label="File">
    <div class="row between"><strong class="wrap">${file.name}</strong>
      <span class="row"><span class="muted">${bytes(file.size)}${table && html` · ${table.format.toUpperCase()}${table.encoding && `, ${table.encoding}`} · ${plural(table.rows, "row")}, ${plural(table.columns.length, "column")}`}</span><span role="status" class="muted">${!reason && !error && text}</span>${isBusy && html`<${Button} kind="small" onClick=${leave}>Stop<//>`}</span></div>
    ${isBusy && html`<progress aria-label=${text} max="1" value=${stage === "send" ? share : undefined}></progress>`}
    ${reason && html`<${ErrorBox} error=${new Error(reason)} />`}
    ${error && html`<${ErrorBox} error=${error} /><div><${Button} onClick=${advance}>Try again<//></div>`}
  </section>`;
}

export function Estimate({ estimate }) {
  const { seconds, finish_at, queued_lines: queued } = estimate || {};
  if (!seconds) return html`not measured yet: no batch has ended on this model`;
  return html`about ${duration(seconds)}${seconds > 90 && `, until ${clock(finish_at)}`}${queued > 0 && `, behind ${plural(queued, "waiting line")}`}`;
}

function grouped(errors) {
  const groups = {};
  for (const error of errors) (groups[`${error.fails} ${error.code}`] ??= []).push(error);
  return groups;
}

function Report({ report }) {
  const { lines, lines_failing: failing, is_valid: isValid, errors, num_errors: all, models } = report;
  const groups = Object.values(grouped(errors)).sort((one, other) => (one[0].fails > other[0].fails) - (one[0].fails < other[0].fails));
  const verdict = !isValid
    ? ["bad", "This file would not be accepted"]
    : failing ? ["wait", `${count(failing)} of ${plural(lines, "line")} would fail`] : ["ok", `${plural(lines, "line")}, no errors`];
  return html`<section class="card stack" aria-label="Report">
    <div role="status"><h2><${Badge} tone=${verdict[0]}>${verdict[1]}<//></h2></div>
    <${Facts} items=${[
      ["Lines", count(lines)],
      ["Models", models.map(({ model, lines: own }) => `${model}: ${plural(own, "line")}`).join(", ") || "none that is served here"],
      ["Input tokens", count(report.prompt_tokens)],
      ["Output tokens, at most", count(report.max_output_tokens)],
      ["Time", html`<${Estimate} estimate=${report.estimate} />`],
    ]} />
    ${report.lines_unchecked > 0 && html`<p class="muted">${plural(report.lines_unchecked, "line")} could not be checked in full, and may fail.</p>`}
    ${errors.some(({ code }) => code === "model_not_found") && html`<${OtherModel} endpoint=${report.endpoint} />`}
    ${groups.map((group) => html`<${Group} key=${`${group[0].fails}${group[0].code}`} errors=${group} isOpen=${groups.length < 4} />`)}
    ${all > errors.length && html`<p class="muted">${count(all - errors.length)} more errors are not listed. Mend these first.</p>`}
  </section>`;
}

// Lines for a model of another server run on one of this one: the file is written anew, line by line, and checked again.
function OtherModel({ endpoint }) {
  const fitting = models.value.filter((model) => model.endpoints.includes(endpoint));
  const [name, setName] = useState(fitting[0]?.id);
  const known = new Set(models.value.flatMap(({ id, aliases }) => [id, ...aliases]));
  const isUnknown = (model) => typeof model === "string" && !known.has(model);
  const use = async () => take(await withModel(job.value.file, name, isUnknown));
  return fitting.length > 0 && html`<div class="note row"><span>Models that are not served here can be replaced in a copy of the file.</span>
    <${Select} label="Run their lines on" value=${name} options=${fitting.map(({ id }) => [id, id])} onChange=${setName} /><${Button} kind="small" onClick=${use}>Replace and check again<//></div>`;
}

function Group({ errors, isOpen }) {
  const [shown, setShown] = useState(LISTED);
  const [{ code, message, remedy, fails }] = errors;
  const isSame = errors.every((error) => error.message === message);
  return html`<details open=${isOpen} class="errors">
    <summary><strong>${plural(errors.length, "line")}</strong><code>${code}</code>
      <${Badge} tone=${fails === "file" ? "bad" : "wait"}>${fails === "file" ? "the file is not accepted" : "these lines fail"}<//></summary>
    ${isSame && html`<p class="wrap">${message}</p>`}
    ${remedy && html`<p class="muted">${remedy}</p>`}
    <ul>${errors.slice(0, shown).map((error, index) => html`<${Problem} key=${index} error=${error} isSame=${isSame} />`)}</ul>
    ${errors.length > shown && html`<${Button} kind="small" onClick=${() => setShown(shown + 200)}>Show more (${count(errors.length - shown)})<//>`}
  </details>`;
}

function Problem({ error, isSame }) {
  const [lines, setLines] = useState(null);
  const jump = async () => setLines(lines ? null : await job.value.lines.around(error.line));
  return html`<li>
    ${error.line !== null && html`<${Button} kind="small" aria-expanded=${Boolean(lines)} onClick=${jump}>Line ${count(error.line)}<//>`}
    ${error.custom_id && html`<code>${error.custom_id}</code>`}${!isSame && html`<span class="wrap">${error.message}</span>`}
    ${lines && html`<div class="lines">${lines.map((line) => html`<${Line} key=${line.number} line=${line} error=${line.number === error.line ? error : null} />`)}</div>`}
  </li>`;
}

const AROUND = 600; // characters of a long line shown before and behind the place of its error

function Line({ line: { number, text, isCut }, error }) {
  const [begin, end] = (error && placeOf(text, error)) || [0, 0];
  const from = Math.max(0, begin - AROUND);
  const to = error ? Math.min(text.length, Math.max(end, begin) + AROUND) : 200;
  const isEnd = to >= text.length && !isCut;
  return html`<span class="muted num">${count(number)}</span>
    <code class=${error ? "bad" : "cut"}>${from > 0 && "…"}${text.slice(from, begin)}${end > begin && html`<mark>${text.slice(begin, Math.min(end, to))}</mark>`}${text.slice(Math.max(end, from), to)}${!isEnd && "…"}</code>`;
}

// Name, window and priority, as every new batch has them.
export function Options() {
  const { id, options } = job.value;
  const set = (name) => (event) => change(id, { options: { ...job.value.options, [name]: event.target.value } });
  const choice = (label, name, items, hint) => html`<${Field} label=${label} hint=${hint}>${(props) => html`
    <select ...${props} onChange=${set(name)}>${items.map(([value, text]) => html`<option value=${value} selected=${value === options[name]}>${text}</option>`)}</select>`}<//>`;
  return html`<div class="grid">
    <${Field} label="Name">${(props) => html`<input ...${props} maxlength="512" value=${options.name} onInput=${set("name")} />`}<//>
    ${choice("Time window", "window", WINDOWS, "Lines that are not done by then are not run.")}
    ${choice("Priority", "priority", PRIORITIES, "Higher ones run first.")}
  </div>`;
}

function Start({ report: { lines, lines_failing: failing, is_valid: isValid, endpoint } }) {
  const [error, setError] = useState(null);
  const good = lines - failing;
  const begin = () => {
    setError(null);
    return start("/v1/batches", { input_file_id: job.value.sender.id, endpoint, ...chosen(job.value.options) });
  };
  return html`<section class="card stack" aria-label="Start">
    <${Options} />
    ${failing > 0 && isValid && html`<p>The ${good ? `${plural(good, "good line")} run` : "lines are accepted"}. The ${plural(failing, "bad line")} end in the error file, each with its error; mended, they can be run alone.</p>`}
    ${!isValid && html`<p id="why-not">The server takes a file only as a whole, and not with the errors that are marked red. Mend them and drop the file again.</p>`}
    <${ErrorBox} error=${error} />
    <div><${Button} kind="primary" disabled=${!isValid} aria-describedby=${isValid ? undefined : "why-not"} onClick=${begin} onError=${setError}>Start ${plural(lines, "line")}<//></div>
  </section>`;
}
