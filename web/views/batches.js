// The list of batches: filters in the address, rows that are loaded as one scrolls and change live, and actions on several.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../lib/html.js";
import { caller, can, get, models } from "../lib/api.js";
import { age, batchName, batchState, clock, count, duration, isFinal, now, rate, short } from "../lib/format.js";
import { href, setQuery } from "../lib/router.js";
import { follow } from "../lib/sse.js";
import { Badge, Button, Empty, ErrorBox, Loading, Progress, Select, useTick, useTitle } from "../lib/ui.js";
import { VirtualList } from "../lib/virtual_list.js";
import { ACTIONS, actOn } from "./batch_actions.js";
import { BatchList, STATUSES } from "./batch_list.js";

const [WIDE_ROW, NARROW_ROW] = [64, 112]; // px
const TYPING_MS = 250;
const narrow = matchMedia("(max-width: 760px)");
let kept = null; // the rows that were shown last, for the way back from a batch

export default function Batches({ query }) {
  useTitle("Batches");
  useTick();
  const filter = Object.fromEntries(["status", "model", "q"].map((name) => [name, query.get(name) || ""]));
  const { list, shown, streamError } = useLiveList(filter);
  const { selected, select } = useSelection(shown);
  const height = useNarrow() ? NARROW_ROW : WIDE_ROW;
  useLayoutEffect(() => {
    if (shown.shift) scrollBy(0, shown.shift * height);
    shown.shift = 0;
  });
  const { items } = shown;
  const isFiltered = Boolean(filter.status || filter.model || filter.q);
  const hasOwners = items.some((batch) => batch.api_key_id);
  const owners = useOwners(hasOwners);
  const row = (index) =>
    index < items.length
      ? html`<${Row} batch=${items[index]} owner=${owners(items[index])} isSelected=${selected.has(items[index].id)}
          onSelect=${(event) => select(index, event)} />`
      : html`<span role="cell" class="muted">Loading more…</span>`;
  return html`<div class=${`batches ${hasOwners ? "owned" : ""} ${can("inference") ? "" : "fixed"}`}>
    <div class="row between top"><h1>Batches</h1>${can("inference") && html`<a class="button primary" href="#/new">New batch</a>`}</div>
    ${(items.length > 0 || isFiltered) && html`<${Filters} filter=${filter} list=${shown} />`}
    <${ErrorBox} error=${list.error || streamError}> <${Button} kind="small" onClick=${() => list.renew()}>Try again<//><//>
    ${!shown.isLoaded && !list.error && html`<${Loading} />`}
    ${shown.isLoaded && !items.length && (isFiltered ? html`<${NothingFound} />` : html`<${NoBatches} />`)}
    ${items.length > 0 && html`
      <div onKeyDown=${moveFocus} aria-busy=${shown !== list}>
        <${VirtualList} count=${items.length + (shown.hasMore ? 1 : 0)} height=${height} row=${row} label="Batches" header=${Head({ items, selected, select })}
          keyOf=${(index) => items[index]?.id || "more"} onRange=${(first, last) => shown.show(first, last)} />
      </div>`}
    ${selected.size > 0 && html`<${Bulk} batches=${items.filter((batch) => selected.has(batch.id))} list=${shown} onDone=${() => select(null)} />`}
  </div>`;
}

// The list of the filter. While the first page of another filter is awaited, the rows of the last one are shown.
function useLiveList(filter) {
  const [, redraw] = useState(0);
  const [streamError, setStreamError] = useState(null);
  const current = useRef(null);
  const last = useRef(null);
  const isDirty = useRef(false);
  const change = () => {
    if (isDirty.current) return;
    isDirty.current = true;
    requestAnimationFrame(() => {
      isDirty.current = false;
      redraw((number) => number + 1);
    });
  };
  const key = JSON.stringify(filter);
  const list = useMemo(() => {
    const isBack = history.state?.scroll !== undefined && kept?.key === key;
    if (!isBack) return new BatchList(filter, change);
    requestAnimationFrame(() => scrollTo(0, history.state.scroll));
    return Object.assign(kept.list, { onChange: change });
  }, [key]);
  current.current = list;
  if (list.isLoaded) last.current = list;
  useEffect(() => {
    list.isLoaded ? list.renew() : list.load();
    if (kept && kept.list !== list) kept.list.stop();
    kept = { key, list };
  }, [list]);
  useEffect(
    () =>
      follow("/v1/batches/events", {
        onOpen: (isAgain) => (isAgain || current.current.error) && current.current.renew(),
        onEvent: ({ event, data }) => event === "batch" && current.current.apply(data),
        onError: setStreamError,
      }),
    [],
  );
  return { list, shown: last.current || list, streamError };
}

// The ids that are selected, and the function that changes them: with Shift from the last one to this one; null for none.
function useSelection({ items, filter }) {
  const [selected, set] = useState(new Set());
  const last = useRef(null);
  useEffect(() => set(new Set()), [filter]);
  const select = (index, event) => {
    if (index === null) return set(new Set());
    const ids = index === "all" ? items.map((batch) => batch.id) : [items[index].id];
    const from = event.shiftKey && items.findIndex((batch) => batch.id === last.current);
    if (event.shiftKey && from >= 0) {
      const [first, end] = [Math.min(from, index), Math.max(from, index)];
      ids.splice(0, 1, ...items.slice(first, end + 1).map((batch) => batch.id));
    }
    last.current = items[index]?.id;
    const next = new Set(selected);
    ids.forEach((id) => (event.target.checked ? next.add(id) : next.delete(id)));
    set(next);
  };
  return { selected, select };
}

// The name of the key that made a batch: admins see all names, others their own.
function useOwners(areShown) {
  const [names, set] = useState(new Map());
  useEffect(() => {
    const { api_key_id: id, name } = caller.value;
    if (id) set(new Map([[id, name]]));
    if (areShown && can("admin")) get("/v1/api_keys?limit=100").then(({ data }) => set(new Map(data.map((key) => [key.id, key.name]))), () => {});
  }, [areShown]);
  return ({ api_key_id: id }) => id && (names.get(id) || short(id, 14));
}

function useNarrow() {
  const [is, set] = useState(narrow.matches);
  useEffect(() => {
    const look = () => set(narrow.matches);
    narrow.addEventListener("change", look);
    return () => narrow.removeEventListener("change", look);
  }, []);
  return is;
}

function Filters({ filter, list }) {
  const [typed, setTyped] = useState(filter.q);
  const timer = useRef(null);
  useEffect(() => setTyped(filter.q), [filter.q]);
  const type = (event) => {
    const { value } = event.target;
    setTyped(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQuery({ q: value.trim() }), TYPING_MS);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  const known = models.value.map((model) => model.id);
  const names = filter.model && !known.includes(filter.model) ? [filter.model, ...known] : known;
  const { items, hasMore, isLoaded } = list;
  return html`<div class="filters row" role="search">
    <input type="search" aria-label="Search by name, file or id" placeholder="Name, file or id" value=${typed} onInput=${type} />
    <${Select} label="Status" isHidden value=${filter.status} options=${STATUSES} onChange=${(status) => setQuery({ status })} />
    <${Select} label="Model" isHidden value=${filter.model} options=${[["", "Any model"], ...names.map((name) => [name, name])]}
      onChange=${(model) => setQuery({ model })} />
    <span class="muted small" role="status">${isLoaded && `${count(items.length)}${hasMore ? "+" : ""} ${items.length === 1 ? "batch" : "batches"}`}</span>
  </div>`;
}

const NothingFound = () => html`<${Empty} title="No batch matches">
  <${Button} onClick=${() => setQuery({ status: "", model: "", q: "" })}>Show all batches<//>
<//>`;

const NoBatches = () => html`<${Empty} title="No batches yet">
  <p>A batch is a file of requests, or a table of which each row becomes one. Drop a CSV or JSONL file anywhere on this page, and see what it would do before it starts.</p>
  ${can("inference") && html`<p><a class="button primary" href="#/new">Make the first batch</a></p>`}
  <p class="small">In a terminal: <code>millrace batch create FILE</code>, or any client of OpenAI’s Batch API.</p>
<//>`;

const HEADINGS = [["name", "Name"], ["model", "Model"], ["state", "Status"], ["bar", "Lines"], ["rate", "Speed", "num"], ["eta", "End"], ["age", "Age", "num"], ["owner", "Owner"]];

function Head({ items, selected, select }) {
  const isAll = items.length > 0 && items.every((batch) => selected.has(batch.id));
  return html`<span role="columnheader" class="c-pick"><span class="sr">Selection</span>
      <input type="checkbox" aria-label="Select all batches that are loaded" checked=${isAll} indeterminate=${!isAll && selected.size > 0} onClick=${(event) => select("all", event)} />
    </span>
    ${HEADINGS.map(([name, text, kind = ""]) => html`<span role="columnheader" class=${`c-${name} ${kind}`}>${text}</span>`)}`;
}

// Scrolling renders the rows in view many times a second; one that has not changed is kept for a second.
function Row({ batch, owner, isSelected, onSelect }) {
  const select = useRef();
  select.current = onSelect; // which knows the present place of the row
  const cells = () => rowCells(batch, owner, isSelected, (event) => select.current(event));
  return useMemo(cells, [batch, owner, isSelected, Math.floor(now())]);
}

function rowCells(batch, owner, isSelected, onSelect) {
  const name = batchName(batch);
  const state = batchState(batch);
  const { total, completed, failed } = batch.request_counts;
  const about = [name !== batch.input_file_name && batch.input_file_name, name !== batch.id && batch.id, batch.priority !== 0 && `priority ${batch.priority}`];
  const remember = () => history.replaceState({ scroll: scrollY }, "");
  return html`
    <span role="cell" class="c-pick"><input type="checkbox" aria-label=${`Select ${name}`} checked=${isSelected} onClick=${onSelect} /></span>
    <span role="cell" class="c-name"><a class="cut" href=${href(["batches", batch.id])} title=${name} onClick=${remember}>${name}</a>
      <span class="cut small muted">${about.filter(Boolean).join(" · ")}</span></span>
    <span role="cell" class="c-model cut" title=${batch.model}>${batch.model || (total ? "several" : "–")}</span>
    <span role="cell" class="c-state" title=${batch.waiting_for && `Waiting for ${batch.waiting_for}`}><${Badge} tone=${state.tone}>${state.text.split(": ")[0]}<//></span>
    <span role="cell" class="c-bar"><${Progress} counts=${batch.request_counts} label=${`Lines of ${name}`} />
      <span class="small muted cut">${total ? `${count(completed + failed)} of ${count(total)}` : isFinal(batch) ? "no lines" : "not counted yet"}${failed > 0 && html` · <span class="bad-ink">${count(failed)} failed</span>`}</span></span>
    <span role="cell" class="c-rate num">${rate(batch.tokens_per_second)}</span>
    <span role="cell" class="c-eta"><${End} batch=${batch} /></span>
    <span role="cell" class="c-age num" title=${clock(batch.created_at)}>${age(batch.created_at)}</span>
    <span role="cell" class="c-owner cut" title=${owner}>${owner || "–"}</span>`;
}

const ENDS = ["completed_at", "failed_at", "expired_at", "cancelled_at"];

// When it ends against its deadline, or how long it took.
function End({ batch }) {
  const two = (first, second, isBad) => html`<span class="cut">${first}</span><span class=${`cut small ${isBad ? "bad-ink" : "muted"}`}>${second}</span>`;
  if (isFinal(batch)) {
    const end = Math.max(...ENDS.map((name) => batch[name] || 0));
    return two(`took ${duration(Math.max(0, end - batch.created_at))}`, `${age(end)} ago`);
  }
  const room = batch.expires_at - now();
  const deadline = room > 0 ? `deadline in ${duration(room)}` : "deadline is over";
  if (!batch.eta_at) return two("–", deadline, room <= 0);
  const left = Math.max(0, batch.eta_at - now());
  return two(`in ${duration(left)}`, batch.will_miss_window ? `too late: ${deadline}` : deadline, batch.will_miss_window);
}

function Bulk({ batches, list, onDone }) {
  const run = async (name) => {
    const answers = await actOn(name, batches);
    answers?.forEach((batch) => list.apply(batch));
    if (answers) onDone();
  };
  return html`<div class="bulk card row" role="region" aria-label="Selected batches">
    <span role="status"><strong>${count(batches.length)}</strong> selected</span>
    ${Object.entries(ACTIONS).map(([name, { text, fits }]) => {
      const number = batches.filter(fits).length;
      return html`<${Button} kind="small" disabled=${!number} onClick=${() => run(name)}>${text}${number > 0 && number < batches.length && ` (${number})`}<//>`;
    })}
    <button type="button" class="button small quiet" onClick=${onDone}>Select none</button>
  </div>`;
}

// Arrow keys go to the same element of the next row.
function moveFocus(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const cell = step && event.target.closest(".vrow > *");
  const next = cell?.parentElement[step]?.querySelector(`.${cell.classList[0]} :is(a, input)`);
  if (!next) return;
  event.preventDefault();
  next.focus();
}
