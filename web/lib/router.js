// Hash routes: `#/batches/batch_1?status=failed` is the path ["batches", "batch_1"] with the query {status: "failed"}.
import { signal } from "./html.js";

export const route = signal(read());
let guard = null; // asks before a view with unsaved input is left

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// The address of a view: `href(["batches", id], {tab: "lines"})`.
export function href(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const words = new URLSearchParams(given).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
}

export function go(path, query) {
  location.hash = href(path, query);
}

// Change the query of this view without an entry in the browser's history.
export function setQuery(query) {
  history.replaceState(null, "", href(route.value.path, { ...Object.fromEntries(route.value.query), ...query }));
  route.value = read();
}

// While a view has unsaved input: `guardLeaving(() => "Your text is not saved.")`; `guardLeaving(null)` ends it.
export function guardLeaving(question) {
  guard = question;
}

let current = location.hash;
addEventListener("hashchange", () => {
  const question = guard?.();
  if (question && !confirm(`${question} Leave this page?`)) {
    history.replaceState(null, "", current || "#/");
    return;
  }
  guard = null;
  current = location.hash;
  route.value = read();
});
addEventListener("beforeunload", (event) => {
  if (guard?.()) event.preventDefault();
});
