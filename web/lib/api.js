// The client of the HTTP API: the key of this tab, JSON calls with clear errors, pages of lists, uploads and downloads.
import { signal, computed } from "./html.js";

const KEY = "millrace-key";

export const key = signal(sessionStorage.getItem(KEY) || "");
export const caller = signal(null); // the answer of GET /v1/me; null until it is known
export const needsKey = signal(false); // the server has refused the last call for want of a valid key
export const isOnline = signal(true); // the last call reached the server
export const models = signal([]); // GET /v1/models, without aliases

// May the caller do what needs one of these scopes? Without keys everything is allowed.
export const can = (...scopes) => {
  const have = caller.value?.scopes || [];
  return have.includes("admin") || scopes.some((scope) => have.includes(scope));
};
export const isReadOnly = computed(() => !can("inference"));

export function setKey(value) {
  key.value = value;
  value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY);
}

// An error of the API or of the way to it. `message` is for people; `code` and `param` are OpenAI's.
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, body = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, body });
  }
}

export function headers(extra = {}) {
  return key.value ? { authorization: `Bearer ${key.value}`, ...extra } : extra;
}

// Send a request; returns the Response of a 2xx, and throws an ApiError else. `path` begins with /v1.
export async function send(method, path, { json, body, signal: abort, headers: extra = {} } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: headers(json === undefined ? extra : { "content-type": "application/json", ...extra }),
      body: json === undefined ? body : JSON.stringify(json),
      signal: abort,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    isOnline.value = false;
    throw new ApiError("The server does not answer. Is it running?");
  }
  isOnline.value = true;
  if (response.ok) return response;
  throw await errorOf(response);
}

export async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let problem = {};
  try {
    problem = JSON.parse(text).error || {};
  } catch {
    problem = { message: `The server answered ${response.status} ${response.statusText}.` };
  }
  if (response.status === 401) needsKey.value = true;
  const { message = `The server answered ${response.status}.`, code, param } = problem;
  return new ApiError(message, { status: response.status, code, param, body: text });
}

const call = (method) => async (path, options) => (await send(method, path, options)).json();
const begun = new Map(); // answers of `begin` that no view has taken yet
export const get = (path, options) => {
  const early = begun.get(path);
  begun.delete(path);
  return early || call("GET")(path, options);
};
// Ask before the view that needs the answer is there; the first `get` of the path takes it.
export const begin = (path) => {
  const answer = call("GET")(path);
  answer.catch(() => {});
  begun.set(path, answer);
};
export const del = call("DELETE");
export const post = (path, json = {}, options = {}) => call("POST")(path, { json, ...options });
export const patch = (path, json) => call("PATCH")(path, { json });

// `path` with a query; empty values are left out, and lists repeat the name.
export function withQuery(path, query) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") words.append(name, each);
    }
  }
  return String(words) ? `${path}?${words}` : path;
}

// Send a form with progress: `onProgress(part)` from 0 to 1. fetch reports none for uploads, so this is XMLHttpRequest.
export function upload(path, form, { onProgress = () => {}, signal: abort } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => {
      isOnline.value = false;
      reject(new ApiError("The connection was lost while the file was sent. Nothing was started; try again."));
    };
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onload = async () => {
      const response = new Response(request.responseText, { status: request.status, statusText: request.statusText });
      response.ok ? resolve(await response.json()) : reject(await errorOf(response));
    };
    abort?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

// Save the answer of a GET as a file. Without a key the browser does it alone; with one, the header must be sent.
export async function download(path, name) {
  let url = path;
  if (key.value) url = URL.createObjectURL(await (await send("GET", path)).blob());
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  if (url !== path) setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Ask who the caller is, and begin to ask which models there are. Throws the ApiError of a missing or wrong key.
export async function signIn() {
  readModels().catch(() => {}); // beside the other call; views show models when they are there
  caller.value = await get("/v1/me");
  needsKey.value = false;
}

export function signOut() {
  setKey("");
  caller.value = null;
  needsKey.value = true;
}

export async function readModels() {
  const all = (await get("/v1/models")).data;
  models.value = all.filter((model) => model.id === model.root);
}
