// One line of a batch: prompt, answer or error, and how it was made, side by side; the answer streams while it is generated.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { can, get, post } from "../lib/api.js";
import { follow } from "../lib/sse.js";
import { go, href } from "../lib/router.js";
import { batchName, clock, count, isFinal } from "../lib/format.js";
import { Badge, Button, CopyButton, ErrorBox, Facts, Loading, toast, useTitle } from "../lib/ui.js";

export const OUTCOMES = {
  completed: ["answered", "ok"],
  failed: ["failed", "bad"],
  expired: ["out of time", "bad"],
  cancelled: ["cancelled", "off"],
  queued: ["waiting", "wait"],
  running: ["running", "run"],
};
export const Outcome = ({ status }) => html`<${Badge} tone=${OUTCOMES[status]?.[1]}>${OUTCOMES[status]?.[0] || status}<//>`;

const json = (value) => JSON.stringify(value, null, 2);

// The text of a message's content, which is a text, or parts of which only those of text can be shown.
function contentText(content) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (Array.isArray(content)) return content.map((part) => (typeof part === "string" ? part : (part.text ?? part.refusal ?? `[${part.type}]`))).join("");
  return json(content);
}

const inputText = (value) => (Array.isArray(value) && value.every((each) => typeof each === "string") ? value.join("\n") : typeof value === "string" ? value : json(value));

// The prompt of a request body of any endpoint, as [role, text] of each message.
export function promptOf(body) {
  if (!body) return [];
  if (body.messages) return body.messages.map(({ role, content, tool_calls: calls }) => [role, contentText(content) || (calls ? json(calls) : "")]);
  const parts = body.instructions ? [["instructions", body.instructions]] : [];
  if (Array.isArray(body.input) && body.input.some((item) => item?.role)) {
    return [...parts, ...body.input.map((item) => [item.role || item.type || "input", contentText(item.content) || json(item)])];
  }
  const asked = body.prompt ?? body.input;
  return asked === undefined ? parts : [...parts, [body.prompt === undefined ? "input" : "prompt", inputText(asked)]];
}

// The answer of a response of any endpoint, as [what, text] of each part.
export function answerOf(response) {
  if (!response) return [];
  if (response.choices) {
    const several = response.choices.length > 1;
    return response.choices.flatMap(({ index, message, text, finish_reason: reason }) => {
      const name = `${several ? `answer ${index + 1}` : "answer"}${reason === "length" ? " (cut at its token limit)" : ""}`;
      const parts = [];
      if (message?.reasoning_content) parts.push(["reasoning", message.reasoning_content]);
      const said = text ?? message?.content ?? message?.refusal ?? "";
      if (said || !message?.tool_calls) parts.push([name, said]);
      for (const call of message?.tool_calls || []) parts.push([`call of ${call.function?.name}`, call.function?.arguments || ""]);
      return parts;
    });
  }
  if (response.output) {
    return response.output.map((item) => {
      if (item.type === "message") return ["answer", contentText(item.content)];
      if (item.type === "reasoning") return ["reasoning", contentText(item.content?.length ? item.content : item.summary)];
      return item.name ? [`call of ${item.name}`, item.arguments] : [item.type, json(item)];
    });
  }
  if (Array.isArray(response.data)) {
    return response.data.map(({ index, embedding }) => [
      `vector ${index + 1}`,
      Array.isArray(embedding) ? `${count(embedding.length)} numbers: ${embedding.slice(0, 8).map((value) => value.toFixed(4)).join(", ")} …` : String(embedding),
    ]);
  }
  return [["answer", json(response)]];
}

// Text with `names` in backticks.
export const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

export const flat = (parts) => parts.map(([, text]) => text).join(" ");

const Part = ({ name, text, isLive = false }) => html`<div class="part">
  <h3 class="muted small">${name}</h3>
  <pre tabindex="0" role="region" aria-label=${name} aria-busy=${isLive}>${text}${isLive && html`<span class="caret" aria-hidden="true">▌</span>`}</pre>
</div>`;

// The answer as it comes: the stream begins with all text so far, also after a cut.
function LiveAnswer({ path, onEnd }) {
  const [text, setText] = useState({ answer: "", reasoning: "" });
  const box = useRef(null);
  useEffect(() => {
    let got = { answer: "", reasoning: "" };
    let frame = 0;
    const show = () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        setText({ ...got });
      });
    };
    const stop = follow(`${path}/stream`, {
      onOpen: () => {
        got = { answer: "", reasoning: "" };
        show();
      },
      onEvent: ({ data }) => {
        if (data.error) {
          stop();
          onEnd();
          return;
        }
        const [choice] = data.choices || [];
        got.answer += choice?.delta?.content ?? choice?.text ?? "";
        got.reasoning += choice?.delta?.reasoning_content ?? "";
        show();
      },
      onEnd,
      onError: onEnd,
    });
    return () => {
      cancelAnimationFrame(frame);
      stop();
    };
  }, [path]);
  useEffect(() => {
    const pre = box.current?.querySelector("pre:last-of-type");
    if (pre) pre.scrollTop = pre.scrollHeight;
  }, [text]);
  const hasBegun = text.answer || text.reasoning;
  return html`<div ref=${box} data-testid="live">
    ${text.reasoning && html`<${Part} name="reasoning" text=${text.reasoning} isLive=${!text.answer} />`}
    ${hasBegun ? html`<${Part} name="answer, as it is generated" text=${text.answer} isLive=${true} />` : html`<${Loading} text="Waiting for its turn; the answer appears here token by token." />`}
  </div>`;
}

export default function LineView({ path }) {
  const [, batchId, , lineId] = path;
  const place = `/v1/batches/${encodeURIComponent(batchId)}`;
  const here = `${place}/requests/${encodeURIComponent(lineId)}`;
  const [line, setLine] = useState(null);
  const [batch, setBatch] = useState(null);
  const [error, setError] = useState(null);
  const [near, setNear] = useState([]);
  const [remedy, setRemedy] = useState("");
  const [round, setRound] = useState(0); // of the stream, which begins again if it ended before the line
  const read = async () => {
    try {
      setLine(await get(here));
    } catch (failed) {
      setError(failed);
    }
  };
  const readAll = () => Promise.all([read(), get(place).then(setBatch, () => {})]);
  useEffect(() => void readAll(), [here]);
  const again = useRef(0);
  useEffect(() => () => clearTimeout(again.current), []);
  const onEnd = () => readAll().then(() => (again.current = setTimeout(() => setRound((number) => number + 1), 1000)));
  useEffect(() => {
    if (!line) return;
    const one = async (from, offset) => (await get(`${place}/requests?after_line=${from}&limit=1`)).data.find((each) => each.line === line.line + offset)?.id;
    Promise.all([line.line > 1 ? one(line.line - 2, -1) : undefined, one(line.line, 1)]).then(setNear, () => {});
  }, [line?.id]);
  useEffect(() => {
    if (!line?.error) return;
    get(`${place}/report`).then(({ errors }) => setRemedy(errors.find(({ code }) => code === line.error.code)?.remedy || ""), () => {});
  }, [line?.error?.code]);
  useTitle(line ? `Line ${line.line}` : "Line");
  const isLive = line && ["queued", "running"].includes(line.status) && batch && !isFinal(batch);
  const retry = async () => {
    const made = await post(`${place}/retry`, { custom_ids: [line.custom_id] });
    toast("The line runs again, in a new batch.");
    go(["batches", made.id]);
  };
  const to = (id, text) => (id ? html`<a href=${href(["batches", batchId, "lines", id])}>${text}</a>` : html`<span class="muted">${text}</span>`);
  return html`
    <nav class="crumbs" aria-label="Path"><a href="#/batches">Batches</a> / <a href=${href(["batches", batchId])}>${batch ? batchName(batch) : batchId}</a></nav>
    ${!line && html`<h1>Line</h1>`}
    ${error && html`<${ErrorBox} error=${error}> <a href=${href(["batches", batchId])}>Show the batch</a><//>`}
    ${!line && !error && html`<${Loading} />`}
    ${line && html`
      <div class="row between top">
        <h1>Line ${count(line.line)} <span class="mono small cid">${line.custom_id}</span> <${Outcome} status=${line.status} /></h1>
        <div class="row">
          <span class="row small">${to(near[0], "← Line before")} ${to(near[1], "Next line →")}</span>
          ${can("inference") && html`<${Button} onClick=${retry}>Retry this line<//>`}
        </div>
      </div>
      <div class="two">
        <section class="card stack" aria-label="Prompt of the line">
          <div class="row between"><h2>Prompt</h2>${line.body && html`<${CopyButton} text=${() => json(line.body)} label="Copy as JSON" />`}</div>
          ${line.body ? promptOf(line.body).map(([role, text]) => html`<${Part} name=${role} text=${text} />`) : html`<p class="muted">The body of this line cannot be read.</p>`}
        </section>
        <section class="card stack" aria-label="Answer to the line">
          <div class="row between"><h2>${line.error && !line.response ? "Error" : "Answer"}</h2>
            ${line.response && html`<${CopyButton} text=${() => flat(answerOf(line.response))} />`}</div>
          ${line.error && html`<div class="error-box"><strong>${line.error.code || line.error.type}</strong>${line.error.param && html` (${line.error.param})`}<br />${line.error.message}</div>`}
          ${remedy && html`<p><strong>What to do: </strong>${withCode(remedy)}</p>`}
          ${answerOf(line.response).map(([name, text]) => html`<${Part} name=${name} text=${text} />`)}
          ${isLive && html`<${LiveAnswer} key=${round} path=${here} onEnd=${onEnd} />`}
          ${!isLive && !line.response && !line.error && html`<p class="muted">It has no answer.</p>`}
        </section>
      </div>
      <${Made} line=${line} />`}`;
}

function Made({ line }) {
  const { usage, reproducibility: made, attempt, finished_at: at } = line;
  const parameters = made?.parameters && Object.entries(made.parameters).map(([name, value]) => `${name} ${value ?? "–"}`).join(", ");
  const short = (hash) => hash && html`<code title=${hash}>${hash.slice(0, 16)}</code>`;
  return html`<section class="card stack made" aria-label="How it was made">
    <h2>How it was made</h2>
    <${Facts} items=${[
      ["Model", line.model],
      ["Finished", at && clock(at)],
      ["Attempts", attempt || null],
      ["Input tokens", usage && `${count(usage.prompt_tokens)}${usage.prompt_tokens_details?.cached_tokens ? `, ${count(usage.prompt_tokens_details.cached_tokens)} cached` : ""}`],
      ["Output tokens", usage && `${count(usage.completion_tokens)}${usage.completion_tokens_details?.reasoning_tokens ? `, ${count(usage.completion_tokens_details.reasoning_tokens)} reasoning` : ""}`],
      ["Seed", made && String(made.seed ?? "–")],
      ["Engine", made?.engine_build],
      ["Fingerprint", made?.system_fingerprint],
      ["Model file", short(made?.model_hash)],
      ["Template", short(made?.template_hash)],
      ["Settings", short(made?.settings_hash)],
    ]} />
    ${parameters && html`<p class="small"><span class="muted">Parameters: </span>${parameters}</p>`}
    ${made && html`<p class="hint">The same body, seed and parameters, on the same engine, model file, template and settings, give the same answer.</p>`}
    ${[["Request as JSON", line.body], ["Response as JSON", line.response]].map(([name, value]) => value && html`
      <details><summary>${name}</summary><pre tabindex="0" role="region" aria-label=${name}>${json(value)}</pre></details>`)}
  </section>`;
}
