// Files of the tenant: upload, download, delete. Before a file is deleted, the batches that use it are named.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { can, del, download, get, upload, withQuery } from "../lib/api.js";
import { batchName, bytes, clock, isFinal, percent, plain, plural } from "../lib/format.js";
import { setQuery } from "../lib/router.js";
import { Table, useList } from "../lib/table.js";
import { ask, Button, Dialog, Empty, ErrorBox, Field, Form, Loading, Select, toast, useTitle } from "../lib/ui.js";

const PURPOSES = ["batch", "user_data", "assistants", "fine-tune", "vision", "evals"];
const MADE = ["batch_output"];

export default function Files({ query }) {
  useTitle("Files");
  const purpose = query.get("purpose") || "";
  const { items, error, load, more } = useList("/v1/files", { purpose });
  const [sending, setSending] = useState(null); // {file} while the dialog is open
  const mayWrite = can("files");
  useEffect(() => void load(), [purpose]);
  const remove = async (file) => {
    const text = await usesOf(file);
    if (!(await ask({ title: `Delete “${plain(file.filename)}”?`, text, action: "Delete it", isDanger: true }))) return;
    await del(`/v1/files/${file.id}`);
    toast(`“${plain(file.filename)}” is deleted.`);
    await load();
  };
  const drop = (event) => {
    event.preventDefault(); // the shell would make a batch of it
    if (mayWrite && event.dataTransfer.files.length) setSending({ file: event.dataTransfer.files[0] });
  };
  return html`<div class="fill" onDrop=${drop}>
    <div class="row between"><h1>Files</h1><div class="row">
      <${Select} label="Purpose" value=${purpose} options=${[["", "all"], ...[...PURPOSES, ...MADE].map((each) => [each, each])]} onChange=${(value) => setQuery({ purpose: value })} />
      ${mayWrite && html`<${Button} kind="primary" onClick=${() => setSending({ file: null })}>Upload a file<//>`}</div></div>
    ${!mayWrite && html`<p class="note">Your key may read files. Uploading and deleting them needs the scope <code>files</code>.</p>`}
    <${ErrorBox} error=${error} />
    ${!items && !error && html`<${Loading} />`}
    ${items && !items.length && html`<${Empty} title=${purpose ? `No files for ${purpose}` : "No files yet"}>
      <p>Inputs and results of batches are kept here. ${mayWrite && "Drop a file anywhere on this view to upload it."}</p>${can("inference") && html`<a class="button" href="#/new">Start a batch</a>`}<//>`}
    ${items?.length > 0 && html`<div class="card"><${Table} label="Files" head=${[["Name"], ["Purpose"], ["Size", "num"], ["Created"], ["Expires"], ["Actions", "actions"]]} rows=${items.map((file) => [
      file.id,
      [
        html`<span class="wrap">${plain(file.filename)}</span><br /><span class="muted small mono wrap">${file.id}</span>`,
        file.purpose,
        bytes(file.bytes),
        clock(file.created_at),
        file.expires_at ? clock(file.expires_at) : "never",
        html`<div class="row end">
          <${Button} kind="small" aria-label=${`Download ${plain(file.filename)}`} onClick=${() => download(`/v1/files/${file.id}/content`, file.filename)}>Download<//>
          ${mayWrite && html`<${Button} kind="small" aria-label=${`Delete ${plain(file.filename)}`} onClick=${() => remove(file)}>Delete<//>`}</div>`,
      ],
    ])} /></div>`}
    ${more}
    ${sending && html`<${UploadDialog} chosen=${sending.file} onClose=${() => setSending(null)} onSent=${(file) => (setSending(null), toast(`“${plain(file.filename)}” is uploaded.`), load())} />`}
  </div>`;
}

// What happens to the batches of a file when it is deleted.
async function usesOf(file) {
  const end = "This cannot be undone.";
  if (!can("inference", "read-only")) return `Batches that still read it finish; results that were not downloaded are lost. ${end}`;
  const { data, has_more: hasMore } = await get(withQuery("/v1/batches", { file_id: file.id, limit: 3 }));
  if (!data.length) return `No batch uses it. ${end}`;
  const names = data.map((batch) => `“${batchName(batch)}”`).join(", ") + (hasMore ? " and others" : "");
  const isInput = data.some((batch) => batch.input_file_id === file.id);
  if (!isInput) return `It holds the results of the batch ${names}, which cannot be downloaded after that. ${end}`;
  const open = data.filter((batch) => !isFinal(batch)).length;
  const running = open ? ` ${plural(open, "of them has", "of them have")} not ended, and goes on reading it until then.` : "";
  return `It is the input of the batch ${names}.${running} ${end}`;
}

function UploadDialog({ chosen, onClose, onSent }) {
  const [file, setFile] = useState(chosen);
  const [purpose, setPurpose] = useState(!chosen || /\.jsonl$/i.test(chosen.name) ? "batch" : "user_data");
  const [progress, setProgress] = useState(null);
  const [error, setError] = useState(null);
  const stopping = useRef(null);
  const choose = (event) => {
    const [picked = null] = event.target.files;
    setFile(picked);
    if (picked) setPurpose(/\.jsonl$/i.test(picked.name) ? "batch" : "user_data");
  };
  const close = () => {
    stopping.current?.abort();
    onClose();
  };
  const begin = async () => {
    stopping.current = new AbortController();
    const form = new FormData();
    form.append("purpose", purpose);
    form.append("file", file);
    setError(null);
    setProgress(0);
    try {
      onSent(await upload("/v1/files", form, { onProgress: setProgress, signal: stopping.current.signal }));
    } finally {
      setProgress(null);
    }
  };
  return html`<${Dialog} title="Upload a file" onClose=${close}>
  <${Form}>
    ${chosen ? html`<p>File: <strong class="wrap">${plain(file.name)}</strong> <span class="muted">${bytes(file.size)}</span></p>` : html`<${Field} label="File">${(props) => html`<input ...${props} autofocus type="file" onChange=${choose} />`}<//>`}
    <${Field} label="Purpose" hint="“batch” is a JSONL file of requests, “user_data” any other file.">${(props) => html`<select ...${props} value=${purpose} onChange=${(event) => setPurpose(event.target.value)}>
      ${PURPOSES.map((each) => html`<option value=${each} selected=${each === purpose}>${each}</option>`)}</select>`}<//>
    <${ErrorBox} error=${error} />
    ${progress !== null && html`<p class="muted" role="status">${progress < 1 ? `${percent(progress, 1)} sent` : "Storing it…"}</p>`}
    <div class="row end"><button type="button" class="button" onClick=${close}>Cancel</button><${Button} type="submit" kind="primary" disabled=${!file} onClick=${begin} onError=${setError}>Upload<//></div>
  <//><//>`;
}
