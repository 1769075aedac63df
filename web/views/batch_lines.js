// The lines of a batch: found by custom_id or text, filtered by outcome, chosen for a retry; only those in view are loaded.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { get, withQuery } from "../lib/api.js";
import { href, setQuery } from "../lib/router.js";
import { compact, count, plural, short } from "../lib/format.js";
import { Button, Empty, ErrorBox, Select, toastError } from "../lib/ui.js";
import { VirtualList } from "../lib/virtual_list.js";
import { answerOf, flat, Outcome, OUTCOMES, promptOf } from "./line.js";

const PAGE = 100;
const HEIGHT = 44;
const MOST_AGAIN = 1000; // lines of a filtered list that are read again while the batch runs
const isOpen = (line) => line.status === "queued" || line.status === "running";

// The lines of a list as they are loaded. Without a filter a row is a line of the file, so that the list can jump; with one
// the rows follow each other, and more are loaded at the end.
function useLines(id, total, filter, version) {
  const isFiltered = Object.values(filter).some(Boolean);
  const key = JSON.stringify(filter);
  const range = useRef([0, 40]);
  const [state, setState] = useState({ key, rows: new Map(), list: [], hasMore: isFiltered, error: null });
  const latest = useRef(state);
  const busy = useRef(new Set());
  latest.current = state.key === key ? state : { key, rows: new Map(), list: [], hasMore: isFiltered, error: null };

  const page = (afterLine, limit) =>
    get(withQuery(`/v1/batches/${encodeURIComponent(id)}/requests`, { ...filter, after_line: afterLine, limit, include: "body,response" }));
  const load = async (name, work) => {
    if (busy.current.has(key + name)) return;
    busy.current.add(key + name);
    try {
      const change = await work();
      if (latest.current.key === key) setState((latest.current = { ...latest.current, error: null, ...change(latest.current) }));
    } catch (error) {
      if (latest.current.key === key) setState((latest.current = { ...latest.current, error }));
    } finally {
      busy.current.delete(key + name);
    }
  };
  const jumpTo = (number) =>
    load(number, async () => {
      const { data } = await page(number * PAGE, PAGE);
      return ({ rows }) => ({ rows: new Map([...rows, ...data.map((line) => [line.line, line]), [`page ${number}`, true]]) });
    });
  const goOn = () =>
    load("more", async () => {
      const { data, has_more: hasMore } = await page(latest.current.list.at(-1)?.line || 0, PAGE);
      return ({ list }) => ({ list: [...list, ...data], hasMore });
    });
  const again = () =>
    load("more", async () => {
      const { data, has_more: hasMore } = await page(0, Math.max(PAGE, latest.current.list.length));
      return () => ({ list: data, hasMore });
    });
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  // A list that scrolls fast loads only where it stops.
  const want = (first, last) => {
    range.current = [first, last];
    clearTimeout(timer.current);
    timer.current = setTimeout(() => fill(false), 60);
  };
  const fill = (isAgain) => {
    const [first, last] = range.current;
    const { rows, list, hasMore } = latest.current;
    if (isFiltered) {
      if (isAgain && list.length <= MOST_AGAIN) again();
      else if (hasMore && last >= list.length - PAGE / 4) goOn();
      return;
    }
    for (let number = Math.floor(first / PAGE); number * PAGE < last; number += 1) {
      const isKnown = rows.has(`page ${number}`);
      const changes = () => Array.from({ length: PAGE }, (_, at) => rows.get(number * PAGE + at + 1)).some((line) => line && isOpen(line));
      if (!isKnown || (isAgain && changes())) jumpTo(number);
    }
  };
  useEffect(() => fill(false), [key, total, state.list.length]);
  useEffect(() => fill(true), [version]);
  const { rows, list, hasMore, error } = latest.current;
  if (isFiltered) return { length: list.length + (hasMore ? 1 : 0), at: (index) => list[index], isLoaded: (index) => index < list.length, hasMore, error, want, isFiltered };
  const highest = [...rows.keys()].reduce((most, each) => (each > most ? each : most), 0);
  return { length: Math.max(total, highest), at: (index) => rows.get(index + 1), isLoaded: (index) => rows.has(`page ${Math.floor(index / PAGE)}`), hasMore: false, error, want, isFiltered };
}

export function BatchLines({ batch, query, version, chosen, setChosen, onRetry }) {
  const given = { q: query.get("q"), text: query.get("text"), status: query.get("status"), code: query.get("code") };
  const lines = useLines(batch.id, batch.request_counts.total, given, version);
  const [kind, setKind] = useState(given.q ? "q" : "text");
  const [typed, setTyped] = useState(given.q || given.text || "");
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  const search = (words, into = kind) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQuery({ q: into === "q" ? words : "", text: into === "text" ? words : "" }), 250);
  };
  const clear = () => {
    clearTimeout(timer.current);
    setTyped("");
    setQuery({ q: "", text: "", status: "", code: "" });
  };
  const choose = (name) => {
    const next = new Set(chosen);
    if (!next.delete(name)) next.add(name);
    setChosen(next);
  };
  const cell = (content, kindOf = "", title) => html`<div role="cell" class=${kindOf} title=${title}>${content}</div>`;
  const row = (index) => {
    const line = lines.at(index);
    if (!line) return html`<div role="cell" class="muted small all">${lines.isLoaded(index) ? `Line ${count(index + 1)} of the file is empty` : "Loading…"}</div>`;
    const answer = line.error ? `${line.error.code || ""}: ${line.error.message}` : flat(answerOf(line.response));
    const prompt = flat(promptOf(line.body).slice(-1));
    return html`
      ${cell(html`<input type="checkbox" aria-label=${`Choose line ${line.line}`} checked=${chosen.has(line.custom_id)} onChange=${() => choose(line.custom_id)} />`)}
      ${cell(count(line.line), "num muted")}
      ${cell(html`<a href=${href(["batches", batch.id, "lines", line.id])}>${short(line.custom_id, 80)}</a>`, "cut cid", short(line.custom_id, 500))}
      ${cell(html`<${Outcome} status=${line.status} />`)}
      ${cell(short(prompt, 300), "cut prompt")}
      ${cell(short(answer, 300), `cut ${line.error ? "wrong" : ""}`)}
      ${cell(line.usage ? compact(line.usage.total_tokens) : "", "num tokens")}`;
  };
  const heads = [["sr", "Choose"], ["num", "Line"], ["", "custom_id"], ["", "Outcome"], ["prompt", "Prompt"], ["", "Answer or error"], ["num tokens", "Tokens"]];
  const header = heads.map(([kindOf, text]) => html`<div role="columnheader" class=${kindOf === "sr" ? "" : kindOf}>${kindOf === "sr" ? html`<span class="sr">${text}</span>` : text}</div>`);
  return html`
    <div class="row filters">
      <${Select} label="Search in" value=${kind} options=${[["text", "prompt and answer"], ["q", "custom_id"]]}
        onChange=${(value) => { setKind(value); if (typed) search(typed, value); }} />
      <input type="search" class="grow" aria-label="Search lines" placeholder=${kind === "q" ? "Part of a custom_id" : "Part of a prompt or an answer"} maxlength="512"
        value=${typed} onInput=${(event) => { setTyped(event.target.value); search(event.target.value); }} />
      <${Select} label="Outcome" value=${given.status || ""} onChange=${(status) => setQuery({ status })}
        options=${[["", "all"], ...["completed", "failed", "queued", "cancelled", "expired"].map((name) => [name, OUTCOMES[name][0]])]} />
      ${given.code && html`<button type="button" class="button small" onClick=${() => setQuery({ code: "" })}>error: ${short(given.code, 40)} <span aria-hidden="true">✕</span><span class="sr"> remove this filter</span></button>`}
    </div>
    <p class="small muted" role="status" aria-live="polite">${lines.isFiltered && !lines.error ? `${lines.hasMore ? "More than " : ""}${plural(Math.max(0, lines.length - (lines.hasMore ? 1 : 0)), "line matches", "lines match")}` : ""}</p>
    ${chosen.size > 0 && html`<div class="note row between chosen"><span role="status">${plural(chosen.size, "line is", "lines are")} chosen</span>
      <span class="row"><${Button} kind="small" onClick=${() => setChosen(new Set())}>Choose none<//><${Button} kind="small primary" onClick=${() => onRetry([...chosen]).catch(toastError)}>Retry ${chosen.size === 1 ? "it" : "them"}<//></span></div>`}
    <${ErrorBox} error=${lines.error} />
    ${lines.length ? html`<div class="batch-lines"><${VirtualList} key=${JSON.stringify(given)} count=${lines.length} height=${HEIGHT} label="Lines" header=${header} row=${row} onRange=${lines.want} /></div>`
      : lines.isFiltered ? html`<${Empty} title="No line matches"><${Button} onClick=${clear}>Show all lines<//><//>`
        : html`<p class="muted">${batch.status === "validating" ? "The lines appear once the file is checked." : "There are no lines."}</p>`}`;
}
