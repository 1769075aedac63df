// Tokens per day, split by model, key or kind of token, as a chart and as a table.
import { html, useEffect, useState } from "../lib/html.js";
import { get, withQuery } from "../lib/api.js";
import { Chart } from "../lib/chart.js";
import { count, plain, plural } from "../lib/format.js";
import { setQuery } from "../lib/router.js";
import { poll } from "../lib/sse.js";
import { Table } from "../lib/table.js";
import { Empty, ErrorBox, Facts, Loading, Select, useTitle } from "../lib/ui.js";

const SPANS = [["7", "7 days"], ["30", "30 days"], ["90", "90 days"], ["365", "a year"]];
const SPLITS = [["model", "model"], ["key", "key"], ["kind", "kind of token"]];
const GROUPS = { model: "model,day", key: "key,day", kind: "day" };
const SUMS = ["input_tokens", "input_cached_tokens", "output_tokens", "num_model_requests"];
const KINDS = [
  ["Input", (sums) => sums.input_tokens - sums.input_cached_tokens],
  ["Input from the cache", (sums) => sums.input_cached_tokens],
  ["Output", (sums) => sums.output_tokens],
];
const MOST = 6; // parts of the chart; the rest is one part
const tokens = (sums) => sums.input_tokens + sums.output_tokens;
const dayOf = (at) => new Date(1000 * at).toISOString().slice(0, 10);
const first = (days) => dayOf(Date.now() / 1000 - 86400 * (days - 1));

function add(into, result) {
  for (const name of SUMS) into[name] = (into[name] || 0) + result[name];
  return into;
}

export default function Usage({ query }) {
  useTitle("Usage");
  const days = SPANS.some(([span]) => span === query.get("days")) ? query.get("days") : "30";
  const split = SPLITS.some(([each]) => each === query.get("by")) ? query.get("by") : "model";
  const [page, setPage] = useState(null);
  const [names, setNames] = useState({});
  const [error, setError] = useState(null);
  useEffect(() => {
    get("/v1/api_keys?limit=100").then(({ data }) => setNames(Object.fromEntries(data.map((key) => [key.id, `${plain(key.name)} (${key.prefix}…)`]))), () => {});
  }, []);
  useEffect(() => {
    const read = () =>
      get(withQuery("/v1/usage", { start: first(days), group_by: GROUPS[split] })).then(
        ({ data }) => (setPage({ days, split, buckets: data }), setError(null)),
        setError,
      );
    return poll(read, 60_000);
  }, [days, split]);
  const choices = html`<div class="row">
    <${Select} label="Span" value=${days} options=${SPANS} onChange=${(value) => setQuery({ days: value })} />
    <${Select} label="By" value=${split} options=${SPLITS} onChange=${(value) => setQuery({ by: value })} /></div>`;
  return html`<div class="row between"><h1>Usage</h1>${choices}</div>
    <${ErrorBox} error=${error} />
    ${!page && !error && html`<${Loading} />`}
    ${page && html`<${Shown} buckets=${page.buckets} days=${page.days} split=${page.split} names=${names} />`}`;
}

function Shown({ buckets, days, split, names }) {
  const nameOf = {
    model: (result) => result.model,
    key: (result) => (result.api_key_id ? names[result.api_key_id] || result.api_key_id : "without a key"),
    kind: () => "",
  }[split];
  const all = {};
  const groups = {}; // sums of each group, and in `days` those of each day
  for (const [n, bucket] of buckets.entries()) {
    for (const result of bucket.results) {
      add(all, result);
      const group = (groups[nameOf(result)] ??= { days: {} });
      add(group, result);
      add((group.days[n] ??= {}), result);
    }
  }
  if (!all.num_model_requests) {
    return html`<${Empty} title=${`No tokens in ${SPANS.find(([span]) => span === days)[1]}`}><p>Tokens are counted when a request or a line of a batch has ended.</p><a class="button" href="#/new">Start a batch</a><//>`;
  }
  const order = Object.entries(groups).sort(([, one], [, two]) => tokens(two) - tokens(one));
  const parts = split === "kind" ? partsOfKinds(buckets, groups[""]) : partsOfGroups(buckets, order);
  const summary = `${count(tokens(all))} tokens in ${plural(all.num_model_requests, "request")}: ${parts.map(({ label, total }) => `${label} ${count(total)}`).join(", ")}`;
  const rows = split === "kind" ? buckets.map((bucket, n) => [dayOf(bucket.start_time), groups[""].days[n]]).filter(([, sums]) => sums).reverse() : order;
  const heads = { model: "Model", key: "Key", kind: "Day" };
  return html`<div class="stack">
    <div class="card"><${Facts} items=${[
      ["Tokens", count(tokens(all))],
      ["Input", count(all.input_tokens)],
      ["of it from the cache", count(all.input_cached_tokens)],
      ["Output", count(all.output_tokens)],
      ["Requests", count(all.num_model_requests)],
    ]} /></div>
    <div class="card"><h2>Tokens per day <span class="muted small">UTC</span></h2>
      <${Chart} isUtc label="Tokens per day" summary=${summary} height=${240} x=${buckets.map((bucket) => bucket.start_time)} series=${stacked(parts)} />
    </div>
    <div class="card"><${Table} label=${`Tokens by ${heads[split].toLowerCase()}`}
      head=${[[heads[split]], ["Tokens", "num"], ["Input", "num"], ["from the cache", "num"], ["Output", "num"], ["Requests", "num"]]}
      rows=${rows.map(([name, sums]) => [name, [html`<span class="wrap">${name}</span>`, ...[tokens(sums), ...SUMS.map((each) => sums[each])].map(count)]])} /></div>
  </div>`;
}

const valuesOf = (buckets, read) => buckets.map((_, n) => read(n) || 0);
const partOf = (label, values, n) => ({ label, values, total: values.reduce((sum, value) => sum + value, 0), colour: `c${n + 1}` });

const partsOfKinds = (buckets, group) => KINDS.map(([label, read], n) => partOf(label, valuesOf(buckets, (day) => group.days[day] && read(group.days[day])), n));

function partsOfGroups(buckets, order) {
  const shown = order.length > MOST ? order.slice(0, MOST - 1) : order;
  const rest = order.slice(shown.length);
  const parts = shown.map(([label, { days }], n) => partOf(label, valuesOf(buckets, (day) => days[day] && tokens(days[day])), n));
  if (rest.length) {
    const sum = (day) => rest.reduce((total, [, { days }]) => total + (days[day] ? tokens(days[day]) : 0), 0);
    parts.push(partOf(plural(rest.length, "other"), valuesOf(buckets, sum), MOST - 1));
  }
  return parts;
}

// Bars on top of one another: each series is the sum of its part and those below, and the highest is drawn first.
function stacked(parts) {
  const sums = [];
  for (const { values } of parts) sums.push(values.map((value, n) => value + (sums.at(-1)?.[n] ?? 0)));
  return parts.map(({ label, values, colour }, n) => ({ label, values: sums[n].map((sum) => sum || null), shown: values, colour, isBar: true })).reverse();
}
