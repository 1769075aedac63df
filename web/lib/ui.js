// Components that all views share. Buttons are buttons, links are links; every input has a label.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { count, percent } from "./format.js";

let lastId = 0;
export const useId = (prefix = "id") => useState(() => `${prefix}-${++lastId}`)[0];

export const Badge = ({ tone = "off", children }) => html`<span class=${`badge ${tone}`}>${children}</span>`;

// A button that runs `onClick`, is disabled until that has ended, and shows its error as a toast unless `onError` takes it.
// `aria-disabled` instead of `disabled`, since a browser takes the keyboard's focus from a disabled button.
export function Button({ onClick, kind = "", children, disabled = false, onError = toastError, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  const isGone = useRef(false);
  useEffect(() => () => void (isGone.current = true), []);
  const run = async (event) => {
    if (disabled || isBusy) return;
    setBusy(true);
    try {
      await onClick?.(event);
    } catch (error) {
      if (error.name !== "AbortError") onError(error);
    } finally {
      if (!isGone.current) setBusy(false);
    }
  };
  return html`<button type="button" ...${rest} class=${`button ${kind}`} aria-disabled=${disabled || isBusy} aria-busy=${isBusy} onClick=${run}>
    ${children}
  </button>`;
}

// A label over an input; `children` is a function of the props that join them: html`<${Field} label="Name">${(props) => …}<//>`.
export function Field({ label, hint, error, children, class: kind = "" }) {
  const id = useId("field");
  const about = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  const props = { id, "aria-describedby": about || undefined, "aria-invalid": error ? "true" : undefined };
  return html`<div class=${`field ${kind}`}>
    <label for=${id}>${label}</label>
    ${children(props)}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="error" id=${`${id}-error`} role="alert">${error}</p>`}
  </div>`;
}

export function Select({ label, value, options, onChange, isHidden = false }) {
  const id = useId("select");
  return html`<span class="select">
    <label for=${id} class=${isHidden ? "sr" : ""}>${label}</label>
    <select id=${id} value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([name, text]) => html`<option value=${name} selected=${name === value}>${text}</option>`)}
    </select>
  </span>`;
}

// A bar of done, failed and left.
export function Progress({ counts, label = "Progress" }) {
  const { total, completed, failed } = counts;
  const text = total ? `${count(completed)} done, ${count(failed)} failed, ${count(total - completed - failed)} left` : "not counted yet";
  const width = (part) => ({ width: `${total ? (100 * part) / total : 0}%` });
  return html`<div class="progress" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax=${total || 0}
    aria-valuenow=${completed + failed} aria-valuetext=${text} title=${text}>
    <div class="done" style=${width(completed)}></div><div class="failed" style=${width(failed)}></div>
  </div>`;
}

export const Meter = ({ value, max, label, text }) => html`<div class="meter-box">
  <div class="meter" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax=${max || 0} aria-valuenow=${value || 0}
    aria-valuetext=${text || percent(value, max)}><div style=${{ width: `${max ? Math.min(100, (100 * value) / max) : 0}%` }}></div></div>
  ${text && html`<span class="muted small">${text}</span>`}
</div>`;

export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2>${children}</div>`;

export const ErrorBox = ({ error, title = "", children }) =>
  error && html`<div class="error-box" role="alert">
    ${title && html`<strong>${title} </strong>`}${error.message || String(error)}${children}
  </div>`;

export const Loading = ({ text = "Loading…" }) => html`<p class="muted loading" role="status">${text}</p>`;

// A modal dialog. `onClose` is called for Escape and for a click beside it; the browser keeps the focus inside.
export function Dialog({ title, onClose, children, isWide = false }) {
  const ref = useRef(null);
  const id = useId("dialog");
  useLayoutEffect(() => {
    const before = document.activeElement;
    const dialog = ref.current;
    dialog.showModal();
    return () => {
      dialog.close();
      before?.focus?.();
    };
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    onClose();
  };
  const escape = (event) => event.key === "Escape" && cancel(event); // a browser closes at the second `cancel` whatever is answered
  const began = useRef(null); // a text may be selected from inside to beside the dialog
  return html`<dialog ref=${ref} aria-labelledby=${id} class=${isWide ? "wide" : ""} onCancel=${cancel} onKeyDown=${escape}
    onPointerDown=${(event) => (began.current = event.target)}
    onClick=${(event) => event.target === ref.current && began.current === ref.current && onClose()}>
    <div class="dialog-body">
      <header class="row between"><h2 id=${id}>${title}</h2>
        <button type="button" class="button quiet icon" aria-label="Close" onClick=${onClose}>✕</button></header>
      ${children}
    </div>
  </dialog>`;
}

// A form inside a dialog: Enter presses its button of the type "submit". The browser shows no messages of its own.
export const Form = ({ children }) => html`<form novalidate onSubmit=${(event) => event.preventDefault()}>${children}</form>`;

// Ask before something is done: `await ask({title, text, action: "Cancel 3 batches", isDanger: true})` is true or false.
const question = signal(null);
export const ask = (asked) => new Promise((resolve) => (question.value = { ...asked, resolve }));

export function Question() {
  const asked = question.value;
  if (!asked) return null;
  const answer = (value) => {
    question.value = null;
    asked.resolve(value);
  };
  return html`<${Dialog} title=${asked.title} onClose=${() => answer(false)}>
    <p>${asked.text}</p>
    <div class="row end">
      <button type="button" class="button" onClick=${() => answer(false)}>Keep as it is</button>
      <button type="button" class=${`button ${asked.isDanger ? "danger" : "primary"}`} onClick=${() => answer(true)}>${asked.action}</button>
    </div>
  <//>`;
}

// Short messages at the foot of the page; errors stay until they are closed.
const toasts = signal([]);
export function toast(text, tone = "ok") {
  const id = ++lastId;
  toasts.value = [...toasts.value.slice(-3), { id, text, tone }];
  if (tone !== "bad") setTimeout(() => closeToast(id), 5000);
}
export const toastError = (error) => toast(error.message || String(error), "bad");
const closeToast = (id) => (toasts.value = toasts.value.filter((each) => each.id !== id));

export const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">
  ${toasts.value.map(({ id, text, tone }) => html`<div key=${id} class=${`toast ${tone}`}>
    <span>${text}</span><button type="button" class="button quiet icon" aria-label="Close the message" onClick=${() => closeToast(id)}>✕</button>
  </div>`)}
</div>`;

export function CopyButton({ text, label = "Copy" }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      toast("Copied");
    } catch {
      toast("The browser did not allow copying. Select the text and copy it by hand.", "bad");
    }
  };
  return html`<${Button} kind="small" onClick=${copy}>${label}<//>`;
}

// Tabs over panels: items are [id, text].
export function Tabs({ items, value, onChange, label }) {
  const step = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const at = items.findIndex(([id]) => id === value);
    const [next] = items[(at + move + items.length) % items.length];
    onChange(next);
    event.currentTarget.querySelector(`[data-tab="${next}"]`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${step}>
    ${items.map(([id, text]) => html`<button type="button" role="tab" data-tab=${id} aria-selected=${id === value} tabindex=${id === value ? 0 : -1}
      onClick=${() => onChange(id)}>${text}</button>`)}
  </div>`;
}

// Pairs of a name and a value; pairs without a value are left out.
export const Facts = ({ items }) => html`<dl class="facts">
  ${items.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
</dl>`;

export function useTitle(text) {
  useEffect(() => {
    document.title = text ? `${text} · Millrace` : "Millrace";
  }, [text]);
}

// Render again every `ms`, for ages that grow.
export function useTick(ms = 1000) {
  const [, set] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && set((n) => n + 1), ms);
    return () => clearInterval(timer);
  }, [ms]);
}
