// The form of a table: what is asked about each row, which columns the answers fill, and three rows run live before the start.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { models, post } from "../lib/api.js";
import { count, plural, short } from "../lib/format.js";
import { Button, Empty, ErrorBox, Facts, Field, Loading, Select } from "../lib/ui.js";
import { cellsOf, cellText, firstForm, inserted, KINDS, toFields, toMapping, toShorthand } from "../lib/columns.js";
import { change, chosen, Estimate, job, offered, Options, start } from "./new_batch.js";

const CHAT = "/v1/chat/completions";
const EMBEDDINGS = "/v1/embeddings";
const PREVIEW = "/v1/batches/map/preview";
const MODES = [["columns", "columns"], ["text", "free text"], ["embed", "an embedding"]];
const PAUSE_MS = 600; // of typing, before the preview follows

const serving = (mode) => models.value.filter((model) => model.endpoints.includes(mode === "embed" ? EMBEDDINGS : CHAT));
const answered = (found) => found?.added_columns.slice(0, -1) || []; // the last column is that of errors
const set = (patch) => change(job.value.id, { form: { ...job.value.form, isSuggested: false, ...patch } });
const suggest = ({ columns, sample }, model) => ({ ...firstForm(columns, sample.map(({ values }) => values), model), isSuggested: true });

// A real model that answers now before the demo, if there is one.
const firstModel = () => [...serving("text")].sort((one, other) => rank(one) - rank(other))[0]?.id || serving("embed")[0]?.id;
const rank = ({ id, status }) => (status === "ready" ? 0 : 2) + (id === "demo" ? 1 : 0);

export function MapForm() {
  const { form } = job.value;
  const [table, setTable] = useState(job.value.table || null);
  const [error, setError] = useState(null);
  const read = async () => {
    setError(null);
    const { id, sender } = job.value;
    try {
      const model = firstModel();
      const found = await post(PREVIEW, { input_file_id: sender.id }, { signal: job.value.stopping.signal });
      change(id, { table: found, form: withOffer(suggest(found, model)) });
      setTable(found);
    } catch (failed) {
      if (failed.name !== "AbortError") setError(failed);
    }
  };
  useEffect(() => {
    if (!table && firstModel()) read();
  }, []);
  if (!firstModel()) return html`<${Empty} title="No model is served"><p>A table needs one to ask about its rows.</p><a class="button" href="#/models">Models</a><//>`;
  if (error) return html`<${ErrorBox} error=${error} title="The table cannot be used." /><div><${Button} onClick=${read}>Try again<//></div>`;
  return table && form ? html`<${Form} table=${table} form=${form} />` : html`<${Loading} text="Reading the table…" />`;
}

// A prompt of the playground takes the place of the suggested one; the table's text comes behind it.
function withOffer(form) {
  const { value: prompt } = offered;
  if (!prompt) return form;
  const { schema, parameters, model, system } = prompt;
  const text = `${prompt.prompt}\n\n${form.prompt.split("\n").at(-1)}`;
  const shape = schema ? { mode: "columns", schemaText: JSON.stringify(schema, null, 2) } : { mode: "text", column: form.column || "answer" };
  return { ...form, model, system, prompt: text, parameters, ...shape, isSuggested: false };
}

function Form({ table, form }) {
  const preview = usePreview(form);
  const { error } = preview;
  const errorAt = (name) => error?.param === `mapping.${name}` && error.message;
  return html`
    <div class="two">
      <${Prompt} table=${table} form=${form} errorAt=${errorAt} />
      <${Shape} form=${form} errorAt=${errorAt} />
    </div>
    <${Preview} form=${form} table=${table} preview=${preview} />
    <${Begin} form=${form} preview=${preview} />`;
}

// The preview of the form after a pause of typing: {found, answers: {custom_id: cells or error}, error, isOld, run}.
function usePreview(form) {
  const mapping = toMapping(form);
  const text = JSON.stringify(mapping);
  const [state, setState] = useState({});
  const running = useRef(null);
  const isPaid = serving(form.mode).find(({ id }) => id === form.model)?.backend === "openai"; // may cost money: only when asked
  const look = async (isAsked) => {
    running.current?.abort();
    const stopping = (running.current = new AbortController());
    const { signal: abort } = stopping;
    const put = (patch) => !abort.aborted && setState((old) => ({ ...old, ...patch }));
    try {
      const found = await post(PREVIEW, { input_file_id: job.value.sender.id, mapping }, { signal: abort });
      const isRun = isAsked || !isPaid;
      put({ text, found, mode: form.mode, error: null, answers: {}, isRun });
      if (!isRun) return;
      await Promise.all(found.sample.map(async ({ custom_id: name, body }) => {
        const answer = await post(found.endpoint, body, { signal: abort }).then((got) => cellsOf(form.mode, answered(found), got)).catch((error) => error);
        if (!abort.aborted) setState((old) => ({ ...old, answers: { ...old.answers, [name]: answer } }));
      }));
    } catch (error) {
      if (error.name !== "AbortError") put({ text, error });
    }
  };
  useEffect(() => {
    const timer = setTimeout(look, state.text ? PAUSE_MS : 0);
    return () => {
      clearTimeout(timer);
      running.current?.abort();
    };
  }, [text]);
  return { ...state, isOld: state.text !== text, run: () => look(true) };
}

function Prompt({ table, form, errorAt }) {
  const areas = { prompt: useRef(null), system: useRef(null) };
  const last = useRef("prompt");
  const isEmbedding = form.mode === "embed";
  const insert = (column) => {
    const name = isEmbedding ? "prompt" : last.current;
    const area = areas[name].current;
    area.setRangeText(inserted(column), area.selectionStart, area.selectionEnd, "end");
    set({ [name]: area.value });
    area.focus();
  };
  const field = (name, label, rows, error) => html`<${Field} label=${label} error=${error}>${(props) => html`
    <textarea ...${props} ref=${areas[name]} rows=${rows} value=${form[name]} onFocus=${() => (last.current = name)} onInput=${(event) => set({ [name]: event.target.value })}></textarea>`}<//>`;
  const options = serving(form.mode).map(({ id }) => [id, id]);
  return html`<section class="card" aria-label="Prompt">
    <div class="field"><${Select} label="Model" value=${form.model} options=${options} onChange=${(model) => set(form.isSuggested ? suggest(table, model) : { model })} /></div>
    ${field("prompt", isEmbedding ? "Text to embed" : "Prompt, for each row", 3, errorAt(isEmbedding ? "embed" : "prompt"))}
    <div class="chips" role="group" aria-label="Columns of the table">${table.columns.map((column) => html`<button key=${column} type="button" class="button small" title="Insert the column" onClick=${() => insert(column)}>${short(inserted(column), 40)}</button>`)}</div>
    ${!isEmbedding && field("system", "System prompt", 3, errorAt("system"))}
  </section>`;
}

function Shape({ form, errorAt }) {
  const { mode } = form;
  const id = `mode-${job.value.id}`;
  const choose = (next) => set({ mode: next, model: serving(next).some((model) => model.id === form.model) ? form.model : serving(next)[0]?.id });
  const modes = MODES.filter(([name]) => serving(name).length);
  const input = (name, label, hint, { isWide, ...rest } = {}) => html`<${Field} class=${isWide ? "wide" : ""} label=${label} hint=${hint} error=${errorAt(name)}>${(props) => html`<input ...${props} ...${rest} value=${form[name]} onInput=${(event) => set({ [name]: event.target.value })} />`}<//>`;
  return html`<section class="card" aria-label="Answer">
    <fieldset><legend>The answer becomes</legend><div class="row">${modes.map(([name, text]) => html`
      <label key=${name} class="check"><input type="radio" name=${id} checked=${mode === name} onChange=${() => choose(name)} />${text}</label>`)}</div></fieldset>
    ${mode === "columns" ? html`<${Schema} form=${form} error=${errorAt("schema")} />` : input("column", "Name of the new column", "", { placeholder: mode === "embed" ? "embedding" : "answer" })}
    <details open=${Boolean(form.where || form.limit || errorAt("limit") || errorAt("parameters"))}><summary>Rows and parameters</summary>
      <div class="pairs">
        ${input("where", "Only rows where", "such as: amount > 100 and country == 'FR'", { isWide: true })}
        ${input("limit", "Row limit", "", { type: "number", min: 1, placeholder: "all" })}
        ${mode !== "embed" && input("temperature", "Temperature", "", { type: "number", min: 0, max: 2, step: 0.1, placeholder: "model’s own" })}
        ${mode !== "embed" && input("max_tokens", "Max tokens", "", { type: "number", min: 1, placeholder: "model’s own" })}
      </div>
      ${errorAt("parameters") && html`<p class="error">${errorAt("parameters")}</p>`}
    </details>
  </section>`;
}

function Schema({ form: { fields, schemaText }, error }) {
  if (schemaText !== null) {
    const back = toFields(schemaText);
    return html`<${Field} label="Schema" error=${error} hint="name: type, … with string, number, integer, boolean, date, choices such as low|high, and ? for may be empty; or a JSON Schema.">${(props) => html`
      <textarea ...${props} class="mono" rows="5" spellcheck="false" value=${schemaText} onInput=${(event) => set({ schemaText: event.target.value })}></textarea>`}<//>
      ${back && html`<${Button} kind="small" onClick=${() => set({ fields: back, schemaText: null })}>Show it as a form<//>`}`;
  }
  const put = (index, patch) => set({ fields: fields.map((field, at) => (at === index ? { ...field, ...patch } : field)) });
  const typed = (index, name) => (event) => put(index, { [name]: event.target.value });
  return html`${fields.map(({ name, kind, choices, isOptional }, index) => html`<div key=${index} class="column-row" role="group" aria-label=${`Column ${index + 1}`}>
      <input aria-label="Name of the column" placeholder="name" value=${name} onInput=${typed(index, "name")} />
      <select aria-label="Type" onChange=${typed(index, "kind")}>${KINDS.map(([value, text]) => html`<option value=${value} selected=${value === kind}>${text}</option>`)}</select>
      <label class="check small"><input type="checkbox" checked=${isOptional} onChange=${(event) => put(index, { isOptional: event.target.checked })} />may be empty</label>
      <button type="button" class="button quiet icon" aria-label=${`Remove the column ${name}`} onClick=${() => set({ fields: fields.filter((_, at) => at !== index) })}>✕</button>
      ${kind === "choices" && html`<input class="wide" aria-label="Words, with commas between" placeholder="low, medium, high" value=${choices} onInput=${typed(index, "choices")} />`}
    </div>`)}
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <div class="row schema"><${Button} kind="small" onClick=${() => set({ fields: [...fields, { name: "", kind: "string", choices: "", isOptional: false }] })}>Add a column<//>
    <${Button} kind="small quiet" onClick=${() => set({ schemaText: toShorthand(fields) })}>Write it as text<//></div>`;
}

function Preview({ form, table, preview: { found, answers = {}, error, isOld, isRun, mode, run } }) {
  const sample = found?.sample || [];
  const added = answered(found);
  const isPending = isOld || (!error && isRun && sample.some(({ custom_id: name }) => !answers[name]));
  // The new columns stand first, then those of the prompt: a table may be wide.
  const isUsed = (name) => `${form.prompt}${form.system}`.includes(inserted(name));
  const columns = [...table.columns.filter(isUsed), ...table.columns.filter((name) => !isUsed(name))];
  return html`<section class="card stack" aria-label="Preview" aria-busy=${isPending}>
    <div class="row between"><h2>The first rows, answered by ${form.model}</h2>
      <span class="row"><span role="status" class="muted small">${isPending ? "Running…" : ""}</span><${Button} kind="small" onClick=${run}>Run again<//></span></div>
    <${ErrorBox} error=${!isOld && error} />
    ${found && !found.rows_asked && html`<p class="muted">No row is asked. Change “Only rows where”.</p>`}
    ${found?.rows_failed > 0 && html`<div class="error-box"><strong>${plural(found.rows_failed, "row")} cannot be asked, and get the reason in the column of errors.</strong>
      <ul>${found.problems.map(({ row, message }) => html`<li key=${row}>Row ${count(row)}: ${message}</li>`)}</ul></div>`}
    ${sample.length > 0 && html`<div class=${`scroll ${isOld ? "old" : ""}`} tabindex="0" role="region" aria-label="Rows">
      <table class="rows"><thead><tr><th scope="col" class="num">Row</th>${added.map(({ name }) => html`<th scope="col" class="new" key=${name}>${short(name)}</th>`)}
        ${columns.map((name) => html`<th scope="col" key=${name}>${short(name)}</th>`)}</tr></thead>
      <tbody>${sample.map((each) => html`<tr key=${each.row}><td class="num muted">${count(each.row)}</td>
        <${Answers} added=${added} answer=${answers[each.custom_id]} isRun=${isRun} />
        ${columns.map((name) => html`<${Cell} key=${name} text=${cellText(each.values[name])} />`)}</tr>`)}</tbody></table></div>
      <details><summary>The request of the first row</summary><pre tabindex="0"><code>${JSON.stringify(sample[0].body, null, 2)}</code></pre></details>`}
    ${found && !isRun && html`<p class="muted">${mode === form.mode && "This model is at another server, which may charge for it: "}run the rows with the button.</p>`}
  </section>`;
}

const Cell = ({ text, class: kind = "" }) => html`<td class=${`${kind} ${text.length > 60 ? "long" : text.length > 20 ? "mid" : ""}`}>${short(text, 400)}</td>`;

function Answers({ added, answer, isRun }) {
  if (answer instanceof Error) return html`<td colspan=${added.length} class="new error">${answer instanceof SyntaxError ? "The answer was cut before its JSON was whole. Raise “Max tokens”." : answer.message}</td>`;
  return added.map(({ name }) => html`<${Cell} key=${name} class="new" text=${answer ? answer[name] ?? "" : isRun ? "…" : ""} />`);
}

function Begin({ form, preview: { found, error, isOld } }) {
  const [failed, setFailed] = useState(null);
  const begin = () => {
    setFailed(null);
    return start("/v1/batches/map", { input_file_id: job.value.sender.id, mapping: toMapping(form), ...chosen(job.value.options) });
  };
  return html`<section class="card stack" aria-label="Start">
    ${found && html`<${Facts} items=${[
      ["Rows asked", `${count(found.rows_asked)} of ${count(found.rows)}`],
      ["Different requests", found.requests === found.rows_asked ? null : `${count(found.requests)}; equal rows are asked once`],
      ["Input tokens", `about ${count(found.prompt_tokens)}`],
      ["Output tokens, at most", count(found.max_output_tokens)],
      ["Time", html`<${Estimate} estimate=${found.estimate} />`],
    ]} />`}
    <${Options} />
    <${ErrorBox} error=${failed} />
    <div><${Button} kind="primary" disabled=${!found?.rows_asked || isOld || Boolean(error)} onClick=${begin} onError=${setFailed}>Start ${found ? plural(found.rows_asked, "row") : ""}<//></div>
  </section>`;
}
