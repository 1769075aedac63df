// The shell of the page: navigation, the key that a server may ask for, the state of the connection, and the view of the address.
import { html, render, useEffect, useRef, useState } from "./lib/html.js";
import { begin, caller, can, isOnline, key, needsKey, setKey, signIn, signOut } from "./lib/api.js";
import { plain } from "./lib/format.js";
import { go, href, route } from "./lib/router.js";
import { Button, Dialog, Empty, ErrorBox, Field, Loading, Question, Toasts, toast, toastError } from "./lib/ui.js";
import { sleep } from "./lib/sse.js";

// The views by the first part of their address: [text of the navigation or null, module, scopes of which one is needed].
const READS = ["inference", "read-only"];
const VIEWS = {
  batches: ["Batches", () => import("./views/batches.js"), READS],
  batch: [null, () => import("./views/batch.js"), READS],
  line: [null, () => import("./views/line.js"), READS],
  new: ["New batch", () => import("./views/new_batch.js"), ["inference"]],
  playground: ["Playground", () => import("./views/playground.js"), ["inference"]],
  models: ["Models", () => import("./views/models.js"), READS],
  files: ["Files", () => import("./views/files.js"), ["files", "read-only"]],
  usage: ["Usage", () => import("./views/usage.js"), ["read-only"]],
  webhooks: ["Webhooks", () => import("./views/webhooks.js"), ["read-only"]],
  keys: ["Keys", () => import("./views/keys.js"), ["read-only"]],
};
const isShown = (view) => can(...VIEWS[view][2]);

// `#/batches/ID` is the view of a batch, `#/batches/ID/lines/LINE` that of a line; without a view, the first that the key may see.
function viewOf({ path }) {
  const [name = Object.keys(VIEWS).find(isShown), id, part] = path;
  if (name === "batches" && id) return part === "lines" && path[3] ? "line" : "batch";
  return name in VIEWS && VIEWS[name][0] ? name : null;
}

function App() {
  useEffect(() => {
    signIn().catch((error) => !needsKey.value && toastError(error));
  }, []);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    ${caller.value && needsKey.value && html`<${Expired} />`}
    ${caller.value ? html`<${Shell} />` : needsKey.value ? html`<${Gate} />` : html`<main id="main" class="center"><${Start} /></main>`}
    <${Toasts} /><${Question} />`;
}

const skip = (event) => {
  event.preventDefault();
  document.querySelector("#main")?.focus();
};

function Start() {
  const again = () => signIn();
  if (isOnline.value) return html`<${Loading} />`;
  return html`<${Empty} title="The server does not answer"><p>Start it with <code>millrace serve</code>.</p><${Button} kind="primary" onClick=${again}>Try again<//><//>`;
}

function Shell() {
  const name = viewOf(route.value);
  const [isOpen, setOpen] = useState(false);
  const active = name === "batch" || name === "line" ? "batches" : name;
  useEffect(() => setOpen(false), [route.value]);
  return html`<div class="shell">
    <header class="side">
      <a class="brand" href="#/"><img src="/web/icon.svg" alt="" width="26" height="26" />Millrace</a>
      <button type="button" class="button quiet menu" aria-expanded=${isOpen} aria-controls="nav" onClick=${() => setOpen(!isOpen)}>Menu</button>
      <nav id="nav" class=${isOpen ? "open" : ""} aria-label="Views">
        ${Object.entries(VIEWS).map(([view, [text]]) => text && isShown(view) && html`
          <a href=${href([view])} class=${view === "new" ? "accent" : ""} aria-current=${view === active ? "page" : undefined}>${text}</a>`)}
        <${Identity} />
      </nav>
    </header>
    <main id="main" tabindex="-1"><${Connection} /><${View} name=${name} /></main>
  </div>`;
}

function Identity() {
  const { tenant, name, api_key_id: id } = caller.value;
  return html`<div class="identity">
    <a href="/docs">API</a>
    ${id && html`<p class="small muted">${plain(name || id)} · ${tenant}</p><button type="button" class="button small" onClick=${signOut}>Sign out</button>`}
  </div>`;
}

// A line at the top while the server does not answer; it asks until the server is back.
function Connection() {
  useEffect(() => {
    if (isOnline.value) return undefined;
    const stopping = new AbortController();
    (async () => {
      while (!stopping.signal.aborted && !isOnline.value) {
        await sleep(1000, stopping.signal);
        await fetch("/healthz", { cache: "no-store" }).then(
          (response) => response.ok && (isOnline.value = true),
          () => {},
        );
      }
    })();
    return () => stopping.abort();
  }, [isOnline.value]);
  return html`<div role="status" aria-live="polite">
    ${!isOnline.value && html`<div class="banner">The connection to the server is lost. This page goes on by itself when it is back; nothing typed is lost.</div>`}
  </div>`;
}

function View({ name }) {
  const [loaded, setLoaded] = useState({});
  const ref = useRef(null);
  useEffect(() => {
    if (!name) return undefined;
    let isGone = false;
    VIEWS[name][1]().then(
      (module) => !isGone && setLoaded({ name, View: module.default }),
      (error) => !isGone && setLoaded({ name, error }),
    );
    return () => void (isGone = true);
  }, [name]);
  useEffect(() => {
    scrollTo(0, history.state?.scroll ?? 0); // a view may note its place before it is left
    if (ref.current) document.querySelector("#main")?.focus({ preventScroll: true });
    ref.current = true;
  }, [name, route.value.path[1], route.value.path[3]]);
  if (!name) return html`<h1>Nothing here</h1><${Empty} title="There is no such view"><a href="#/batches">Show the batches</a><//>`;
  if (!isShown(name)) {
    const scopes = VIEWS[name][2].map((scope, n) => html`${n > 0 && " or "}<code>${scope}</code>`);
    return html`<h1>${VIEWS[name][0] || "Batches"}</h1><${Empty} title="Your key may not see this"><p>It needs the scope ${scopes}. An admin can create a key that has it: <code>millrace keys create</code>.</p><//>`;
  }
  if (loaded.name !== name) return html`<${Loading} />`;
  if (loaded.error) return html`<${ErrorBox} error=${new Error("This view could not be loaded. Reload the page.")} />`;
  return html`<${loaded.View} key=${`${name}/${route.value.path.slice(1).join("/")}`} path=${route.value.path} query=${route.value.query} />`;
}

const Gate = () => html`<main id="main" class="center" tabindex="-1"><div class="card gate">
  <h1><img src="/web/icon.svg" alt="" width="32" height="32" /> Millrace</h1>
  <p>This server asks for an API key. It is kept in this tab only, until you close it.</p><${KeyForm} />
</div></main>`;

// The key has ended, or the first one was created elsewhere: what is typed in the view behind it stays.
const Expired = () => html`<${Dialog} title="A valid key is needed" onClose=${signOut}>
  <p>${key.value ? "The key of this page is no longer valid." : "This server asks for an API key now."} Nothing typed is lost.</p><${KeyForm} />
<//>`;

function KeyForm() {
  const [typed, setTyped] = useState("");
  const [error, setError] = useState(null);
  const enter = async (event) => {
    event.preventDefault();
    const given = typed.trim();
    if (!/^[!-~]+$/.test(given)) return setError(new Error("This is no key: a key is “sk-” with letters and digits. Was it copied as a whole?"));
    setKey(given);
    try {
      await signIn();
    } catch (failed) {
      setKey("");
      setError(failed.status === 401 ? new Error("The server does not accept this key. It may be mistyped, or have expired or been revoked.") : failed);
    }
  };
  return html`<form onSubmit=${enter}>
    <${Field} label="API key" error=${error?.message}>${(props) => html`<input ...${props} type="password" autofocus autocomplete="off" required value=${typed} onInput=${(event) => setTyped(event.target.value)} />`}<//>
    <button class="button primary">Enter</button>
    <p class="hint">The operator makes one with <code>millrace keys create</code>.</p>
  </form>`;
}

// A file that is dropped anywhere becomes a new batch: views/new_batch.js takes it from here.
export const dropped = { file: null };
addEventListener("dragover", (event) => {
  if ([...(event.dataTransfer?.types || [])].includes("Files")) event.preventDefault();
});
addEventListener("drop", (event) => {
  const [file, ...others] = event.dataTransfer?.files || [];
  if (!file || event.defaultPrevented) return;
  event.preventDefault();
  if (!caller.value) return;
  if (!can("inference")) return toast("Your key may not start batches.", "bad");
  if (others.length) toast(`A batch has one file: “${file.name}” is taken, the others are not.`, "wait");
  dropped.file = file;
  go(["new"]);
  dispatchEvent(new CustomEvent("millrace-drop"));
});

if (viewOf(route.value) === "batches" && !route.value.query.size) begin("/v1/batches?limit=30"); // beside the first calls
render(html`<${App} />`, document.querySelector("#app"));
