// Webhook endpoints: create, change, test and delete them, and see their deliveries with the last error.
import { html, useEffect, useState } from "../lib/html.js";
import { can, del, get, post } from "../lib/api.js";
import { clock, count, plain, plural } from "../lib/format.js";
import { href, setQuery } from "../lib/router.js";
import { SecretDialog } from "../lib/secret.js";
import { poll } from "../lib/sse.js";
import { Table, useList } from "../lib/table.js";
import { ask, Badge, Button, Dialog, Empty, ErrorBox, Field, Form, Loading, Select, toast, useTitle } from "../lib/ui.js";

const URL = "/v1/webhook_endpoints";
const STATES = [["", "all"], ["waiting", "waiting"], ["retrying", "retrying"], ["delivered", "delivered"], ["given_up", "given up"]];
const TONES = { waiting: "wait", retrying: "bad", delivered: "ok", given_up: "bad" };

export default function Webhooks({ path, query }) {
  return path[1] ? html`<${Endpoint} id=${path[1]} query=${query} />` : html`<${Endpoints} />`;
}

function Endpoints() {
  useTitle("Webhooks");
  const { items, error, load, more } = useList(URL);
  const [open, setOpen] = useState(null);
  const isAdmin = can("admin");
  useEffect(() => void load(), []);
  return html`
    <div class="row between"><h1>Webhooks</h1>${isAdmin && html`<${Button} kind="primary" onClick=${() => setOpen({})}>Create an endpoint<//>`}</div>
    ${!isAdmin && html`<p class="note">Your key may read this. Creating and changing endpoints needs the scope <code>admin</code>.</p>`}
    <${ErrorBox} error=${error} />
    ${!items && !error && html`<${Loading} />`}
    ${items && !items.length && html`<${Empty} title="No endpoints yet"><p>A webhook sends a request to a server of yours when a batch or a background response has ended, so that it need not ask.
      The operator names the hosts that may be reached in <code>MILLRACE_WEBHOOK_HOSTS</code>.</p><//>`}
    ${items?.length > 0 && html`<div class="card"><${Table} label="Webhook endpoints" head=${[["Name"], ["State"], ["Delivered", "num"], ["Given up", "num"], ["Events"]]} rows=${items.map((each) => [
      each.id,
      [
        html`<a class="wrap" href=${href(["webhooks", each.id])}>${plain(each.name)}</a><br /><span class="muted small wrap">${each.url}</span>`,
        html`<${Health} endpoint=${each} />`,
        count(each.events_delivered),
        count(each.events_given_up),
        html`<span class="small">${each.event_types.join(", ")}</span>`,
      ],
    ])} /></div>`}
    ${more}
    ${open && !open.signing_secret && html`<${EditDialog} onClose=${() => setOpen(null)} onSaved=${(made) => (setOpen(made), load())} />`}
    ${open?.signing_secret && html`<${Secret} endpoint=${open} onClose=${() => setOpen(null)} />`}`;
}

const Health = ({ endpoint }) => endpoint.failing_since
  ? html`<${Badge} tone="bad">failing<//><div class="small muted">since ${clock(endpoint.failing_since)}</div><div class="small wrap">${endpoint.last_error}</div>`
  : html`<${Badge} tone=${endpoint.events_delivered ? "ok" : "off"}>${endpoint.events_delivered ? "works" : "nothing sent yet"}<//>`;

const Secret = ({ endpoint, onClose }) => html`<${SecretDialog} title=${`The secret of “${plain(endpoint.name)}”`} label="Signing secret" secret=${endpoint.signing_secret} onClose=${onClose}>
  <p>Your receiver checks with it that a request is from this server: set it as <code>OPENAI_WEBHOOK_SECRET</code> there.</p><//>`;

function EditDialog({ endpoint = null, onClose, onSaved }) {
  const [types, setTypes] = useState([]);
  const [name, setName] = useState(endpoint?.name || "");
  const [url, setUrl] = useState(endpoint?.url || "");
  const [chosen, setChosen] = useState(endpoint?.event_types || ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]);
  const [error, setError] = useState(null);
  useEffect(() => void get("/v1/webhook_event_types").then(({ data }) => setTypes(data), setError), []);
  const save = async () => onSaved(await post(endpoint ? `${URL}/${endpoint.id}` : URL, { name: name.trim(), url: url.trim(), event_types: chosen }));
  const toggle = (type) => setChosen(chosen.includes(type) ? chosen.filter((each) => each !== type) : [...chosen, type]);
  const errorOf = (param) => (error?.param === param ? error.message : null);
  return html`<${Dialog} title=${endpoint ? `Change “${plain(endpoint.name)}”` : "Create an endpoint"} onClose=${onClose}>
  <${Form}>
    <${Field} label="Name" error=${errorOf("name")}>${(props) => html`<input ...${props} autofocus value=${name} maxlength="256" autocomplete="off" onInput=${(event) => setName(event.target.value)} />`}<//>
    <${Field} label="URL" error=${errorOf("url")} hint="An https address of your receiver, such as https://hooks.example.com/millrace">
      ${(props) => html`<input ...${props} type="url" value=${url} maxlength="2048" autocomplete="off" onInput=${(event) => setUrl(event.target.value)} />`}<//>
    <fieldset><legend>Events</legend><div class="events">${types.map((type) => html`<label class="check"><input type="checkbox" checked=${chosen.includes(type)} onChange=${() => toggle(type)} /> ${type}</label>`)}</div></fieldset>
    ${!["name", "url"].includes(error?.param) && html`<${ErrorBox} error=${error} />`}
    <div class="row end"><button type="button" class="button" onClick=${onClose}>Cancel</button>
      <${Button} type="submit" kind="primary" disabled=${!name.trim() || !url.trim() || !chosen.length} onClick=${save} onError=${setError}>${endpoint ? "Save" : "Create it"}<//></div>
  <//><//>`;
}

function Endpoint({ id, query }) {
  const [endpoint, setEndpoint] = useState(null);
  const [error, setError] = useState(null);
  const [open, setOpen] = useState(null); // "edit", or the endpoint with its new secret
  const [result, setResult] = useState(null);
  const state = STATES.some(([each]) => each === query.get("state")) ? query.get("state") : "";
  const { items, error: listError, load, more } = useList(`${URL}/${encodeURIComponent(id)}/deliveries`, { state }, 50);
  const isAdmin = can("admin");
  useTitle(endpoint?.name || "Webhook");
  const read = () => get(`${URL}/${encodeURIComponent(id)}`).then(setEndpoint, setError);
  const [isFollowing, setFollowing] = useState(true); // until older deliveries are shown
  useEffect(() => (isFollowing ? poll(async () => void (await Promise.all([read(), load()])), 3000) : undefined), [state, isFollowing]);
  if (error) return html`<p><a href="#/webhooks">Webhooks</a></p><${ErrorBox} error=${error} />`;
  if (!endpoint) return html`<${Loading} />`;
  const test = async () => {
    setResult(null);
    try {
      const { status_code: status } = await post(`${URL}/${id}/test`, { event_type: endpoint.event_types[0] });
      setResult({ isOk: status < 300, text: `The receiver answered the test with ${status}${status < 300 ? "." : ", which is a failure: only 2xx is a success."}` });
    } catch (failed) {
      setResult({ isOk: false, text: failed.message });
    }
    await load();
  };
  const rotate = async () => {
    const text = "The next request is signed with the new secret. For a day it is signed with the old one, too, so that your receiver can change over.";
    if (!(await ask({ title: "Replace the signing secret?", text, action: "Replace it" }))) return;
    setOpen(await post(`${URL}/${id}/rotate_secret`, { keep_old_secret_active_for_24_hours: true }));
    await read();
  };
  const remove = async () => {
    const waiting = items?.filter((each) => !each.finished_at).length;
    const text = `Nothing more is sent to ${endpoint.url}.${waiting ? ` ${plural(waiting, "event that is")} not delivered yet will be dropped.` : ""}`;
    if (!(await ask({ title: `Delete “${plain(endpoint.name)}”?`, text, action: "Delete it", isDanger: true }))) return;
    await del(`${URL}/${id}`);
    toast(`“${plain(endpoint.name)}” is deleted.`);
    location.hash = "#/webhooks";
  };
  return html`<div class="stack">
    <div><p class="small"><a href="#/webhooks">Webhooks</a></p>
      <div class="row between top"><h1 class="grow">${plain(endpoint.name)}</h1>${isAdmin && html`<div class="row">
        <${Button} kind="primary" onClick=${test}>Send a test<//><${Button} onClick=${() => setOpen("edit")}>Change<//>
        <${Button} onClick=${rotate}>Replace the secret<//><${Button} onClick=${remove}>Delete<//></div>`}</div></div>
    <div aria-live="polite">${result && html`<p class=${result.isOk ? "note" : "error-box"}>${result.text}</p>`}</div>
    <div class="card"><dl class="facts">
      <div class="wide-fact"><dt>URL</dt><dd>${endpoint.url}</dd></div>
      <div><dt>State</dt><dd><${Health} endpoint=${endpoint} /></dd></div>
      <div><dt>Delivered</dt><dd>${count(endpoint.events_delivered)}</dd></div><div><dt>Given up</dt><dd>${count(endpoint.events_given_up)}</dd></div>
      <div><dt>Secret</dt><dd class="mono">${endpoint.signing_secret_hint}</dd></div>
      <div class="wide-fact"><dt>Events</dt><dd>${endpoint.event_types.join(", ")}</dd></div></dl></div>
    <div class="card"><div class="row between"><h2>Deliveries</h2>
        <${Select} label="State" value=${state} options=${STATES} onChange=${(value) => (setFollowing(true), setQuery({ state: value }))} /></div>
      <${ErrorBox} error=${listError} />
      ${items && !items.length && html`<p class="muted">${state ? "None in this state." : "Nothing was sent yet. An event is sent when a batch or a background response of yours ends."}</p>`}
      ${items?.length > 0 && html`<${Table} label="Deliveries" head=${[["Event"], ["State"], ["Attempts", "num"], ["Last answer"], ["Created"], ["Ended or next try"]]} rows=${items.map((each) => [
        each.id,
        [
          html`${each.event_type}${each.is_test && html` <${Badge}>test<//>`}<br />${about(each)}`,
          html`<${Badge} tone=${TONES[each.state]}>${each.state.replace("_", " ")}<//>`,
          count(each.attempts),
          html`${each.status_code || (each.attempts && !each.last_error ? "…" : "")} <span class="small wrap">${each.last_error}</span>`,
          clock(each.created_at),
          each.finished_at ? clock(each.finished_at) : `next ${clock(each.next_attempt_at)}`,
        ],
      ])} />`}
      <div onClick=${() => setFollowing(false)}>${more}</div></div>
    ${open === "edit" && html`<${EditDialog} endpoint=${endpoint} onClose=${() => setOpen(null)} onSaved=${(saved) => (setEndpoint(saved), setOpen(null), toast("Saved."))} />`}
    ${open?.signing_secret && html`<${Secret} endpoint=${open} onClose=${() => setOpen(null)} />`}
  </div>`;
}

const about = ({ data: { id }, is_test: isTest }) => id.startsWith("batch_") && !isTest
  ? html`<a class="mono small wrap" href=${href(["batches", id])}>${id}</a>`
  : html`<span class="mono small muted wrap">${id}</span>`;
