// One batch: its progress and charts, its errors and what to do, its lines, the actions on it, and its results.
import { html, useEffect, useMemo, useRef, useState } from "../lib/html.js";
import { can, download, get, models, patch, post, send, withQuery } from "../lib/api.js";
import { follow } from "../lib/sse.js";
import { go, href, setQuery } from "../lib/router.js";
import { age, batchName, batchState, clock, compact, count, duration, isFinal, now, percent, plural, rate } from "../lib/format.js";
import { ask, Badge, Button, CopyButton, Dialog, ErrorBox, Facts, Field, Loading, Progress, Select, toast, useTick, useTitle } from "../lib/ui.js";
import { Chart } from "../lib/chart.js";
import { BatchLines } from "./batch_lines.js";
import { withCode } from "./line.js";

const POINTS = 30;
const MOST_LINES = 5000; // of a larger batch the report and charts are read less often

// Call `work` at once, and then at most every `ms`, with a last call after the last wish.
function useThrottled(work) {
  const latest = useRef(work);
  latest.current = work;
  const timer = useRef({ id: 0, at: 0 });
  useEffect(() => () => clearTimeout(timer.current.id), []);
  return useMemo(() => (ms) => {
    if (timer.current.id) return;
    timer.current.id = setTimeout(() => {
      timer.current = { id: 0, at: Date.now() };
      latest.current();
    }, Math.max(0, timer.current.at + ms - Date.now()));
  }, []);
}

export default function BatchView({ path, query }) {
  const id = path[1];
  const place = `/v1/batches/${encodeURIComponent(id)}`;
  const [batch, setBatch] = useState(null);
  const [more, setMore] = useState({});
  const [error, setError] = useState(null);
  const [version, setVersion] = useState(0);
  const [chosen, setChosen] = useState(new Set());
  const known = useRef(null);
  const show = (value) => setBatch((known.current = value));
  const read = async () => {
    try {
      show(await get(place));
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  };
  const readMore = async () => {
    const [timeline, report, retries] = await Promise.all([
      get(`${place}/timeline?points=${POINTS}`), get(`${place}/report`), get(withQuery("/v1/batches", { parent_batch_id: id, limit: 100 })),
    ]);
    setMore({ timeline, report, retries: retries.data });
  };
  const refresh = useThrottled(() => {
    readMore().catch(() => {});
    if (known.current && !isFinal(known.current)) read();
    setVersion((number) => number + 1);
  });
  const soon = () => refresh(known.current?.request_counts.total > MOST_LINES ? 6000 : 1500);
  useTitle(batch ? batchName(batch) : "Batch");
  useTick(isFinal(batch || { status: "failed" }) ? 60_000 : 1000);
  useEffect(() => {
    read().then(soon);
  }, [id]);
  useEffect(() => {
    if (!more.retries?.some((each) => !isFinal(each))) return undefined;
    const timer = setTimeout(() => readMore().catch(() => {}), 3000);
    return () => clearTimeout(timer);
  }, [more]);
  const isOver = batch && isFinal(batch);
  useEffect(() => {
    if (!batch || isOver) return undefined;
    return follow(`${place}/events`, {
      onOpen: (isAgain) => isAgain && read().then(soon),
      onEvent: ({ event, data }) => {
        if (event === "batch.progress" && known.current) show({ ...known.current, ...data });
        if (event === "batch.status" && data.status !== known.current?.status) read();
        soon();
      },
      onEnd: () => read().then(soon),
      onError: setError,
    });
  }, [!batch, isOver]);

  const retry = async (names) => {
    const made = await post(`${place}/retry`, names ? { custom_ids: names } : {});
    toast(names ? `${plural(names.length, "line runs", "lines run")} again in this new batch.` : "The lines without an answer run again in this new batch.");
    go(["batches", made.id]);
  };
  if (!batch) return html`<nav class="crumbs" aria-label="Path"><a href="#/batches">Batches</a></nav><h1>Batch</h1>${error ? html`<${ErrorBox} error=${error}> <a href="#/batches">Show all batches</a><//>` : html`<${Loading} />`}`;
  const state = batchState(batch);
  return html`
    <nav class="crumbs" aria-label="Path"><a href="#/batches">Batches</a> / <span class="muted mono small">${batch.id}</span></nav>
    <div class="row between top">
      <h1>${batchName(batch)} <span role="status"><${Badge} tone=${state.tone}>${state.text}<//></span></h1>
      <${Actions} batch=${batch} place=${place} show=${show} retry=${retry} />
    </div>
    <${ErrorBox} error=${error} />
    <div class="stack">
      ${batch.errors?.data?.length > 0 && html`<${FileErrors} batch=${batch} />`}
      ${batch.status !== "failed" && html`<${Overview} batch=${batch} report=${more.report} />`}
      <${Steps} batch=${batch} />
      ${more.timeline?.data.length > 0 && html`<${Charts} batch=${batch} timeline=${more.timeline} />`}
      ${more.report?.errors.length > 0 && html`<${Errors} batch=${batch} errors=${more.report.errors} place=${place} retry=${retry} />`}
      ${batch.request_counts.completed + batch.request_counts.failed > 0 && html`<${Results} batch=${batch} place=${place} retries=${more.retries} />`}
      <${Details} batch=${batch} more=${more} />
      ${batch.status !== "failed" && html`<section class="card" aria-label="Lines" id="lines"><h2>Lines</h2>
        <${BatchLines} batch=${batch} query=${query} version=${version} chosen=${chosen} setChosen=${setChosen} onRetry=${retry} /></section>`}
    </div>`;
}

function Actions({ batch, place, show, retry }) {
  const [isChanging, setChanging] = useState(false);
  const isOver = isFinal(batch);
  const { total, completed } = batch.request_counts;
  const act = (verb, text) => async () => {
    show(await post(`${place}/${verb}`));
    toast(text);
  };
  const cancel = async () => {
    const question = { title: "Cancel this batch?", text: `${plural(total - completed, "line has", "lines have")} no answer yet. Answers that are there are kept, and the others can be retried later.`, action: "Cancel the batch", isDanger: true };
    if (await ask(question)) await act("cancel", "The batch is being cancelled.")();
  };
  if (!can("inference")) return html`<p class="muted small">Your key may read this batch, but not change it.</p>`;
  const reason = isOver ? (batch.status === "failed" ? "Its file was not accepted, so there is nothing to pause or retry." : "It has ended: it cannot be paused or changed, but its lines can be retried.") : "Lines can be retried once it has ended.";
  return html`<div class="actions">
    <div class="row end">
      ${!isOver && (batch.paused_at ? html`<${Button} kind="primary" onClick=${act("resume", "The batch goes on.")}>Resume<//>` : html`<${Button} onClick=${act("pause", "The batch is paused. Lines that an engine has already are finished.")}>Pause<//>`)}
      ${!isOver && html`<${Button} onClick=${() => setChanging(true)}>Priority and window<//>`}
      ${!isOver && html`<${Button} onClick=${cancel} disabled=${batch.status === "cancelling"}>Cancel<//>`}
      ${isOver && batch.status !== "failed" && html`<${Button} kind=${completed < total ? "primary" : ""} onClick=${() => retry()}>Retry ${completed < total ? plural(total - completed, "line") : ""} without an answer<//>`}
    </div>
    <p class="muted small">${reason}</p>
    ${isChanging && html`<${Change} batch=${batch} place=${place} show=${show} onClose=${() => setChanging(false)} />`}
  </div>`;
}

function Change({ batch, place, show, onClose }) {
  const [typed, setTyped] = useState({ priority: String(batch.priority), completion_window: batch.completion_window });
  const [error, setError] = useState(null);
  const input = (name) => ({ value: typed[name], onInput: (event) => setTyped({ ...typed, [name]: event.target.value }) });
  const save = async (event) => {
    event.preventDefault();
    setError(null);
    const change = {};
    if (typed.priority !== String(batch.priority)) change.priority = Number(typed.priority);
    if (typed.completion_window !== batch.completion_window) change.completion_window = typed.completion_window.trim();
    try {
      show(await patch(place, change));
      toast("The batch is changed.");
      onClose();
    } catch (failed) {
      setError(failed);
    }
  };
  const of = (name) => (error?.param === name ? error.message : "");
  return html`<${Dialog} title="Priority and window" onClose=${onClose}>
    <form onSubmit=${save}>
      <${Field} label="Priority" hint="−100 to 100. A higher one goes first, whatever the windows." error=${of("priority")}>
        ${(props) => html`<input ...${props} type="number" min="-100" max="100" step="1" required ...${input("priority")} />`}<//>
      <${Field} label="Window" hint=${`Time from its creation (${age(batch.created_at)} ago) within which it must end: 90m, 24h or 7d.`} error=${of("completion_window")}>
        ${(props) => html`<input ...${props} required ...${input("completion_window")} />`}<//>
      ${error && !(error.param in typed) && html`<${ErrorBox} error=${error} />`}
      <div class="row end"><button type="button" class="button" onClick=${onClose}>Keep as it is</button><button class="button primary">Change</button></div>
    </form>
  <//>`;
}

function FileErrors({ batch }) {
  const errors = batch.errors.data;
  return html`<section class="card stack" aria-label="Errors of the file">
    <h2>The file was not accepted</h2>
    <p>No line of it ran. Correct ${errors.length === 1 ? "this" : "these"} and <a href="#/new">make a new batch</a>; there the whole file can be checked before the start.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Errors by line"><table>
      <thead><tr><th class="num">Line</th><th>What is wrong</th></tr></thead>
      <tbody>${errors.map(({ line, message, param, code }) => html`<tr><td class="num">${line ? count(line) : "–"}</td><td><span class="wrap">${message}</span><br /><span class="muted small">${param && html`field <code>${param}</code>, `}<code>${code}</code></span></td></tr>`)}</tbody>
    </table></div>
  </section>`;
}

function Overview({ batch, report }) {
  const { total, completed, failed } = batch.request_counts;
  const usage = batch.usage;
  const latency = report?.latency_seconds;
  const isOver = isFinal(batch);
  const left = batch.eta_at && Math.max(1, batch.eta_at - now());
  return html`<section class="card stack" aria-label="Progress">
    <div class="row between"><strong>${total ? `${count(completed + failed)} of ${plural(total, "line")}` : "The lines are not counted yet"}</strong>
      <span class="muted">${percent(completed + failed, total)}</span></div>
    <${Progress} counts=${batch.request_counts} />
    ${!isOver && left && html`<p class=${batch.will_miss_window ? "error" : ""}>Done in about ${duration(left)}, ${batch.will_miss_window ? `${duration(batch.eta_at - batch.expires_at)} after its window ends. Raise its priority, or lengthen its window.` : `${duration(Math.max(1, batch.expires_at - batch.eta_at))} before its window ends.`}</p>`}
    ${!isOver && batch.waiting_for_model && batch.model_ready_at && html`<p>The model is expected in memory in about ${duration(Math.max(1, batch.model_ready_at - now()))}.</p>`}
    <${Facts} items=${[
      ["Done", count(completed)], ["Failed", failed ? `${count(failed)} (${percent(failed, total)})` : "0"], ["Left", count(total - completed - failed)],
      ["Speed", rate(batch.tokens_per_second)],
      ["Input tokens", usage && count(usage.input_tokens)], ["of these cached", usage?.input_tokens_details.cached_tokens ? count(usage.input_tokens_details.cached_tokens) : null],
      ["Output tokens", usage && count(usage.output_tokens)], ["of these reasoning", usage?.output_tokens_details.reasoning_tokens ? count(usage.output_tokens_details.reasoning_tokens) : null],
      ["Device time", report?.device_seconds ? duration(report.device_seconds) : null],
    ]} />
    ${latency && html`<p class="small"><span class="muted">Latency of a line, with its wait for a slot: </span>
      ${[["half", latency.p50], ["90 %", latency.p90], ["95 %", latency.p95], ["99 %", latency.p99]].map(([name, seconds]) => html`<span class="nowrap">${name} within <strong>${duration(seconds)}</strong>,</span>${" "}`)}
      <span class="nowrap">longest <strong>${duration(latency.max)}</strong></span></p>`}
  </section>`;
}

// From validating to the end; a step that has not begun has no time.
function Steps({ batch }) {
  const end = { completed: ["Completed", "completed_at"], failed: ["File not accepted", "failed_at"], expired: ["Out of time", "expired_at"], cancelled: ["Cancelled", "cancelled_at"] }[batch.status];
  const steps = [["Checking the file", batch.created_at]];
  if (batch.status !== "failed") steps.push(["Running", batch.in_progress_at]);
  if (batch.cancelling_at) steps.push(["Cancelling", batch.cancelling_at]);
  else if (!["failed", "expired", "cancelled"].includes(batch.status)) steps.push(["Writing the results", batch.finalizing_at]);
  steps.push(end ? [end[0], batch[end[1]]] : ["Window ends", null, batch.expires_at]);
  const isEnd = (index) => index === steps.length - 1;
  const next = (index) => steps.slice(index + 1).find(([, at]) => at)?.[1];
  const text = (index) => {
    const [, at, until] = steps[index];
    if (until) return until > now() ? `in ${duration(until - now())}` : "over";
    if (!at) return "";
    if (isEnd(index)) return clock(at);
    return next(index) ? (next(index) - at < 1 ? "under 1 s" : duration(next(index) - at)) : `for ${age(at)}`;
  };
  return html`<ol class="steps" aria-label="Timeline">${steps.map(([name, at], index) => {
    const kind = at ? (next(index) || (end && isEnd(index)) ? "past" : "present") : "";
    return html`<li class=${kind} aria-current=${kind === "present" ? "step" : undefined} title=${at ? clock(at) : ""}><strong>${name}</strong>
      <span class="muted small">${name === "Running" && batch.paused_at && kind === "present" ? `paused for ${age(batch.paused_at)}` : text(index)}</span></li>`;
  })}</ol>`;
}

function Charts({ batch, timeline }) {
  const chart = useMemo(() => {
    const { data, seconds } = timeline;
    const sum = (name) => data.reduce((all, bucket) => [...all, all.at(-1) + bucket[name]], [0]);
    const [done, failed] = [sum("completed"), sum("failed")];
    const x = [data[0].at, ...data.map(({ at }) => at + seconds)];
    const ahead = !isFinal(batch) && batch.eta_at > x.at(-1);
    const forecast = [...x.map((_, index) => (index === x.length - 1 ? done.at(-1) + failed.at(-1) : null)), batch.request_counts.total];
    const none = ahead ? [null] : [];
    const several = data.length > 1 ? data : [data[0], { ...data[0], at: data[0].at + seconds }]; // one point is no line
    return {
      middle: several.map(({ at }) => at + seconds / 2),
      speed: ["output_tokens", "input_tokens"].map((name) => several.map((bucket) => bucket[name] / seconds)),
      x: ahead ? [...x, batch.eta_at] : x,
      series: [
        { label: "Done", values: [...done, ...none], colour: "done" },
        { label: "Failed", values: [...failed, ...none], colour: "bad" },
        ...(ahead ? [{ label: "Forecast", values: forecast, colour: "muted" }] : []),
      ],
    };
  }, [timeline, batch.eta_at, batch.status]);
  const { completed, failed } = batch.request_counts;
  return html`<div class="grid">
    <section class="card"><h2>Tokens per second</h2><${Chart} x=${chart.middle} label="Tokens per second over time" summary=${`Now or on average ${rate(batch.tokens_per_second)}`}
      series=${[{ label: "Output", values: chart.speed[0], colour: "accent" }, { label: "Input", values: chart.speed[1], colour: "muted" }]} /></section>
    <section class="card"><h2>Lines over time</h2><${Chart} x=${chart.x} label="Lines done and failed over time" summary=${`${count(completed)} done and ${count(failed)} failed`} series=${chart.series} /></section>
  </div>`;
}

function Errors({ batch, errors, place, retry }) {
  const showLines = (code) => () => {
    setQuery({ code: code || "", status: code ? "" : "failed", q: "", text: "" });
    document.querySelector("#lines").scrollIntoView();
  };
  const retryAll = (code) => async () => {
    const names = [];
    for (let after = 0; ; ) {
      const { data, has_more: hasMore } = await get(withQuery(`${place}/requests`, { code, after_line: after, limit: 1000 }));
      names.push(...data.map((line) => line.custom_id));
      if (!hasMore) break;
      after = data.at(-1).line;
    }
    await retry(names);
  };
  return html`<section class="card stack" aria-label="Errors"><h2>Errors</h2>
    ${errors.map(({ code, lines, message, custom_id: name, remedy }) => html`<article class="failure">
      <div class="row between"><h3><code>${code || "without a code"}</code> ${plural(lines, "line")}</h3>
        <span class="row"><button type="button" class="button small" onClick=${showLines(code)}>Show ${lines === 1 ? "this line" : "these lines"}</button>
          ${isFinal(batch) && code && can("inference") && html`<${Button} kind="small" onClick=${retryAll(code)}>Retry ${lines === 1 ? "it" : "them"}<//>`}</span></div>
      <p class="wrap">${message} <span class="muted small">(<span class="mono">${name}</span>)</span></p>
      <p><strong>What to do: </strong>${withCode(remedy)}</p>
    </article>`)}
  </section>`;
}

const safe = (text) => text.replace(/\.(jsonl|csv|tsv|parquet|xlsx)$/i, "").replace(/[^\p{L}\p{N}_.-]+/gu, "_").slice(0, 80) || "batch";

function saveBlob(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// The answers and errors of a batch and its retries as the lines of OpenAI's result files.
async function mergedLines(place, outcome) {
  const parts = [];
  for (let after = ""; ; ) {
    const response = await send("GET", withQuery(`${place}/output`, { merged: true, after }));
    const lines = (await response.text()).split("\n").filter(Boolean);
    if (!lines.length) return new Blob(parts, { type: "application/jsonl" });
    after = response.headers.get("x-millrace-after");
    const isAnswer = (line) => JSON.parse(line).response?.status_code === 200;
    parts.push(...lines.filter((line) => !outcome || isAnswer(line) === (outcome === "completed")).map((line) => `${line}\n`));
  }
}

function Results({ batch, place, retries }) {
  const [outcome, setOutcome] = useState("");
  const [format, setFormat] = useState("csv");
  const isAlone = !batch.parent_batch_id && retries?.length === 0;
  const save = async () => {
    const name = `${safe(batchName(batch))}${{ completed: "_answers", failed: "_errors" }[outcome] || ""}.${format}`;
    const file = { completed: batch.output_file_id, failed: batch.error_file_id }[outcome];
    if (format !== "jsonl") saveBlob(await (await send("GET", withQuery(`${place}/table`, { format, outcome }))).blob(), name);
    else if (file && isAlone && can("files", "read-only")) await download(`/v1/files/${file}/content`, name);
    else saveBlob(await mergedLines(place, outcome), name);
  };
  return html`<section class="card row between" aria-label="Results">
    <div><h2>Results</h2><p class="muted small">${isFinal(batch) ? "" : "So far. "}${isAlone ? "" : "Together with its retries: each line with its best result."}</p></div>
    <div class="row">
      <${Select} label="Save" value=${outcome} onChange=${setOutcome} options=${[["", "answers and errors"], ["completed", "answers only"], ["failed", "errors only"]]} />
      <${Select} label="as" value=${format} onChange=${setFormat} options=${[["csv", "CSV"], ["jsonl", "JSONL"], ["parquet", "Parquet"]]} />
      <${Button} kind="primary" onClick=${save}>Download<//>
    </div>
  </section>`;
}

function Details({ batch, more }) {
  const mayRead = can("files", "read-only");
  const file = (id, name) => id && html`<span class="mono small">${id}</span> ${mayRead && html`<${Button} kind="small" onClick=${() => download(`/v1/files/${id}/content`, name)}>Download<//>`}`;
  const name = safe(batchName(batch));
  const link = (id, text = id) => html`<a href=${href(["batches", id])}>${text}</a>`;
  const model = models.value.find((each) => each.id === batch.model);
  return html`<details class="card about"><summary><h2>Details</h2></summary>
    <${Facts} items=${[
      ["Model", batch.model && (model ? html`<a href="#/models">${batch.model}</a>` : batch.model)], ["Endpoint", html`<code>${batch.endpoint}</code>`],
      ["Window", `${batch.completion_window}, until ${clock(batch.expires_at)}`], ["Priority", String(batch.priority)], ["Created", clock(batch.created_at)], ["Key", batch.api_key_id],
      ["Input file", html`<span class="wrap">${batch.input_file_name}</span> ${file(batch.input_file_id, batch.input_file_name || `${name}_input.jsonl`)}`],
      ["Output file", file(batch.output_file_id, `${name}_output.jsonl`)], ["Error file", file(batch.error_file_id, `${name}_error.jsonl`)],
      ["Id", html`<span class="mono small">${batch.id}</span> <${CopyButton} text=${batch.id} label="Copy" />`],
      ...Object.entries(batch.metadata || {}).map(([key, value]) => [`metadata: ${key}`, value]),
      ...(more.report?.engines || []).map(({ model: of, engine_build: build, lines }) => [`Engine of ${of}`, `${build}, ${plural(lines, "line")}`]),
    ]} />
  </details>
  ${(batch.parent_batch_id || more.retries?.length > 0) && html`<section class="card" aria-label="Family">
    ${batch.parent_batch_id && html`<p>It retries lines of ${link(batch.parent_batch_id)}.</p>`}
    ${more.retries?.length > 0 && html`<p>Retried as:</p><ul>${more.retries.map((each) => html`<li>${link(each.id, batchName(each) === batchName(batch) ? each.id : batchName(each))} <${Badge} tone=${batchState(each).tone}>${batchState(each).text}<//> <span class="muted small">${compact(each.request_counts.total)} lines, ${age(each.created_at)} ago</span></li>`)}</ul>`}
  </section>`}`;
}
