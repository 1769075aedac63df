// Keys of the tenant: create, rotate and revoke them. A secret is shown once, in the dialog that created it.
import { html, useEffect, useState } from "../lib/html.js";
import { caller, can, models, post, setKey, signIn, signOut } from "../lib/api.js";
import { clock, count, plain } from "../lib/format.js";
import { SecretDialog } from "../lib/secret.js";
import { Table, useList } from "../lib/table.js";
import { ask, Badge, Button, Dialog, Empty, ErrorBox, Field, Form, Loading, toast, useTitle } from "../lib/ui.js";

const SCOPES = [
  ["inference", "chats, embeddings, batches and their results"],
  ["files", "upload, read and delete files"],
  ["read-only", "read everything of the tenant, change nothing"],
  ["admin", "everything, also keys and webhooks"],
];
const LIMITS = [
  ["requests_per_minute", "Requests to a model per minute"],
  ["tokens_per_minute", "Tokens per minute"],
  ["queued_tokens", "Tokens that wait in batches and jobs"],
  ["concurrent_streams", "Streams at the same time"],
  ["calls_per_minute", "Other calls per minute"],
];
const DAY = 86400;
const LIVES = [["", "never"], [7 * DAY, "in 7 days"], [30 * DAY, "in 30 days"], [90 * DAY, "in 90 days"], [365 * DAY, "in a year"]];
const GRACES = [[0, "at once"], [3600, "in an hour"], [DAY, "in a day"], [7 * DAY, "in 7 days"]];
const TONES = { valid: "ok", expired: "off", revoked: "off" };

export default function Keys() {
  useTitle("Keys");
  const { items, error, load, more } = useList("/v1/api_keys");
  const [open, setOpen] = useState(null); // "create", a key to rotate, or {made}: a key with its secret
  const [showsEnded, setShowsEnded] = useState(false);
  useEffect(() => void load(), []);
  const { api_key_id: own, keys_required: isGuarded } = caller.value;
  const isAdmin = can("admin");

  const created = async (made, isOwn) => {
    if (isOwn && made.key) setKey(made.key); // the page goes on with it
    setOpen({ made, isOwn });
    await signIn();
    await load();
  };
  const revoke = async (key) => {
    const left = items.some((each) => each.id !== key.id && each.state === "valid" && each.scopes.includes("admin"));
    const text = `Programs that use it are refused from now on; its batches are finished.${key.id === own ? " It is the key of this page, so you are signed out." : ""}${left ? "" : " No other key here is an admin's: new keys can then be made with the command millrace keys create only."}`;
    if (!(await ask({ title: `Revoke “${plain(key.name)}”?`, text, action: "Revoke it", isDanger: true }))) return;
    await post(`/v1/api_keys/${key.id}/revoke`);
    if (key.id === own) {
      signOut();
      return;
    }
    toast(`“${plain(key.name)}” is revoked.`);
    await load();
  };

  const ended = items?.filter((key) => key.state !== "valid").length;
  const shown = items?.filter((key) => showsEnded || key.state === "valid");
  return html`
    <div class="row between"><h1>Keys</h1>${isAdmin && html`<${Button} kind="primary" onClick=${() => setOpen("create")}>Create a key<//>`}</div>
    ${!isAdmin && html`<p class="note">Your key may read this list. Creating, rotating and revoking keys needs the scope <code>admin</code>.</p>`}
    <${ErrorBox} error=${error} />
    ${!items && !error && html`<${Loading} />`}
    ${items && !items.length && html`<${Empty} title="This server needs no key yet">
      <p>Every program of this machine may use it. Create a key to see who uses what, to give a program few rights, or before other machines
      may use it, too. From then on <strong>every request needs a key</strong>, so the first one is an admin's: it can create the others.</p><//>`}
    ${items?.length > 0 && html`<div class="card">
      <${Table} label="Keys" head=${[["Name"], ["State"], ["May"], ["Limits"], ["Created"], ["Ends"], ["Actions", "actions"]]} rows=${shown.map((key) => [
        key.id,
        [
          html`<span class="wrap">${plain(key.name)}</span>${key.id === own && html` <${Badge} tone="run">this page<//>`}<br /><code title=${key.id}>${key.prefix}…</code>`,
          html`<${Badge} tone=${TONES[key.state]}>${key.state}<//>`,
          html`${key.scopes.join(", ")}${key.models && html`<div class="muted small wrap">only ${key.models.join(", ")}</div>`}`,
          limitsOf(key),
          clock(key.created_at),
          key.revoked_at ? clock(key.revoked_at) : key.expires_at ? clock(key.expires_at) : "never",
          isAdmin && key.state !== "revoked" && html`<div class="row end">
            <${Button} kind="small" aria-label=${`Rotate ${plain(key.name)}`} onClick=${() => setOpen({ old: key })}>Rotate<//>
            ${key.state === "valid" && html`<${Button} kind="small" aria-label=${`Revoke ${plain(key.name)}`} onClick=${() => revoke(key)}>Revoke<//>`}</div>`,
        ],
      ])} />
      ${!shown.length && html`<p class="muted">All keys have ended.</p>`}
    </div>`}
    ${ended > 0 && html`<p><label class="check"><input type="checkbox" checked=${showsEnded} onChange=${(event) => setShowsEnded(event.target.checked)} />
      Show the ${count(ended)} that ended</label></p>`}
    ${more}
    ${open === "create" && html`<${CreateDialog} isFirst=${!isGuarded} onClose=${() => setOpen(null)} onCreated=${created} />`}
    ${open?.old && html`<${RotateDialog} old=${open.old} isOwn=${open.old.id === own} onClose=${() => setOpen(null)} onCreated=${created} />`}
    ${open?.made && html`<${SecretDialog} title=${`The key “${plain(open.made.name)}”`} label="API key" secret=${open.made.key} warning=${open.made.warning} onClose=${() => setOpen(null)}>
      ${open.isOwn && html`<p>This page goes on with it, in this tab.</p>`}<//>`}`;
}

function limitsOf(key) {
  const limits = LIMITS.filter(([name]) => key[name] !== null);
  if (!limits.length) return html`<span class="muted">none</span>`;
  return html`<ul class="small">${limits.map(([name, text]) => html`<li>${text}: ${count(key[name])}</li>`)}</ul>`;
}

const Options = ({ props, value, set, options }) => html`<select ...${props} value=${value} onChange=${(event) => set(event.target.value)}>
  ${options.map(([each, text]) => html`<option value=${each} selected=${String(each) === String(value)}>${text}</option>`)}</select>`;

const livesOf = () => (caller.value?.expires_at ? [["", `with your own key, ${clock(caller.value.expires_at)}`], ...LIVES.slice(1)] : LIVES);

function CreateDialog({ isFirst, onClose, onCreated }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState(isFirst ? ["admin"] : ["inference", "files"]);
  const [some, setSome] = useState(null); // names of models, null for all
  const [life, setLife] = useState("");
  const [limits, setLimits] = useState({});
  const [error, setError] = useState(null);
  const allowed = [...new Set(models.value.map((model) => model.id))];
  const toggle = (list, item) => (list.includes(item) ? list.filter((each) => each !== item) : [...list, item]);
  const errorOf = (param) => (error?.param?.split("[")[0] === param ? error.message : null);
  const hasField = error && ["name", "expires_after_seconds", ...LIMITS.map(([limit]) => limit)].includes(error.param);
  const create = async () => {
    const body = { name: name.trim() || "key", scopes };
    if (!isFirst) {
      Object.assign(body, { models: some, expires_after_seconds: Number(life) || null });
      for (const [limit] of LIMITS) body[limit] = limits[limit] ? Number(limits[limit]) : null;
    }
    await onCreated(await post("/v1/api_keys", body), isFirst);
  };
  return html`<${Dialog} title=${isFirst ? "Create the first key" : "Create a key"} onClose=${onClose}>
  <${Form}>
    ${isFirst && html`<p class="note">From now on <strong>every request needs a key</strong>, from this machine, too: programs that use this server without one are refused until they
      have one. This key has the scope <code>admin</code>, and this page goes on with it.</p>`}
    <${Field} label="Name" error=${errorOf("name")} hint="Who or what will use it, such as “nightly report”.">
      ${(props) => html`<input ...${props} autofocus value=${name} maxlength="256" autocomplete="off" onInput=${(event) => setName(event.target.value)} />`}<//>
    ${!isFirst && html`<fieldset><legend>It may</legend><div class="stack tight">
        ${SCOPES.map(([scope, text]) => html`<label class="check"><input type="checkbox" checked=${scopes.includes(scope)} onChange=${() => setScopes(toggle(scopes, scope))} />
          <span><strong>${scope}</strong> <span class="muted">${text}</span></span></label>`)}</div></fieldset>
      <fieldset><legend>Models</legend><div class="stack tight">
        <label class="check"><input type="radio" name="models" checked=${!some} onChange=${() => setSome(null)} /> ${caller.value?.models ? "all of yours" : "all, also those of later"}</label>
        <label class="check"><input type="radio" name="models" checked=${!!some} onChange=${() => setSome(allowed.slice(0, 1))} disabled=${!allowed.length} /> only some</label>
        ${some && html`<div class="row indent">${allowed.map((model) => html`<label class="check"><input type="checkbox" checked=${some.includes(model)} onChange=${() => setSome(toggle(some, model))} />
          <span class="wrap">${model}</span></label>`)}</div>`}</div></fieldset>
      <${Field} label="Ends" error=${errorOf("expires_after_seconds")}>${(props) => html`<${Options} props=${props} value=${life} set=${setLife} options=${livesOf()} />`}<//>
      <details class="limits"><summary>Limits</summary>
        ${LIMITS.map(([limit, text]) => html`<${Field} label=${text} error=${errorOf(limit)}>
          ${(props) => html`<input ...${props} type="number" min="1" placeholder="no limit" value=${limits[limit] ?? ""} onInput=${(event) => setLimits({ ...limits, [limit]: event.target.value })} />`}<//>`)}
      </details>`}
    ${!hasField && html`<${ErrorBox} error=${error} />`}
    <div class="row end"><button type="button" class="button" onClick=${onClose}>Cancel</button>
      <${Button} type="submit" kind="primary" onClick=${create} onError=${setError} disabled=${!scopes.length || some?.length === 0}>${isFirst ? "Create it and require keys" : "Create it"}<//></div>
  <//><//>`;
}

function RotateDialog({ old, isOwn, onClose, onCreated }) {
  const [grace, setGrace] = useState(DAY);
  const [life, setLife] = useState("");
  const [error, setError] = useState(null);
  const rotate = async () => {
    const body = { grace_seconds: Number(grace), expires_after_seconds: Number(life) || null };
    await onCreated(await post(`/v1/api_keys/${old.id}/rotate`, body), isOwn);
  };
  return html`<${Dialog} title=${`Rotate “${plain(old.name)}”`} onClose=${onClose}>
  <${Form}>
    <p>A new key gets the same name and rights. The old one stays valid for a while, so that its users can change over.</p>
    <${Field} label="The old key ends">${(props) => html`<${Options} props=${props} value=${grace} set=${setGrace} options=${GRACES} />`}<//>
    <${Field} label="The new key ends">${(props) => html`<${Options} props=${props} value=${life} set=${setLife} options=${livesOf()} />`}<//>
    <${ErrorBox} error=${error} />
    <div class="row end"><button type="button" class="button" onClick=${onClose}>Cancel</button><${Button} type="submit" kind="primary" onClick=${rotate} onError=${setError}>Rotate it<//></div>
  <//><//>`;
}
