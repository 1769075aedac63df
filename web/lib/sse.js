// Server-sent events over fetch, since EventSource cannot send a key: parsed, resumed after a cut, paused while hidden.
import { headers, errorOf, isOnline, ApiError } from "./api.js";
import { effect } from "./html.js";

const MOST_WAIT_MS = 10_000;

// Yield {event, data, id} of a response body until it ends.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const parsed = parse(block);
        if (parsed) yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const found = { event: "message", data: null, id: null };
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment keeps the connection open
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") found.data = found.data === null ? value : `${found.data}\n${value}`;
    else if (name === "event" || name === "id") found[name] = value;
  }
  return found.data === null ? null : found;
}

// Follow a stream until `stop()`, which is returned, or until it ends by itself with `onEnd`. After a cut it goes on by itself:
// with Last-Event-ID if the stream has ids. `onOpen(isAgain)` is called at each start, `onEvent({event, data, id})` with JSON data.
export function follow(path, { onEvent, onOpen = () => {}, onEnd = () => {}, onError = () => {} }) {
  const stopping = new AbortController();
  const { signal } = stopping;
  let last = null;
  let wait = 500;
  let isAgain = false;

  async function once() {
    const cut = new AbortController();
    const end = () => cut.abort();
    signal.addEventListener("abort", end);
    const hide = () => document.hidden && end();
    document.addEventListener("visibilitychange", hide);
    try {
      const extra = last === null ? {} : { "last-event-id": last };
      const response = await fetch(path, { headers: headers(extra), signal: cut.signal, cache: "no-store", credentials: "omit" });
      if (!response.ok) throw await errorOf(response);
      isOnline.value = true;
      wait = 500;
      onOpen(isAgain);
      isAgain = true;
      for await (const { event, data, id } of events(response)) {
        if (id !== null) last = id;
        if (data === "[DONE]") return true;
        onEvent({ event, data: JSON.parse(data), id });
      }
      return last !== null; // a stream with ids ends when there is nothing left to follow
    } finally {
      signal.removeEventListener("abort", end);
      document.removeEventListener("visibilitychange", hide);
    }
  }

  (async () => {
    while (!signal.aborted) {
      await visible(signal);
      if (signal.aborted) return;
      try {
        if (await once()) return onEnd();
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ApiError && error.status && error.status < 500 && error.status !== 429) return onError(error);
        if (!document.hidden) isOnline.value = false;
      }
      if (!document.hidden) await pause(wait, signal);
      wait = Math.min(2 * wait, MOST_WAIT_MS);
    }
  })();
  return () => stopping.abort();
}

// Wait before the next attempt, at most until the server has answered another call.
async function pause(ms, signal) {
  const isBack = new AbortController();
  const wasOnline = isOnline.value;
  const unwatch = effect(() => isOnline.value && !wasOnline && isBack.abort());
  await sleep(ms, AbortSignal.any([signal, isBack.signal]));
  unwatch();
}

function visible(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}

export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

// Call `read` now and every `ms` while the page is visible; returns the function that ends it.
export function poll(read, ms) {
  const stopping = new AbortController();
  (async () => {
    while (!stopping.signal.aborted) {
      await visible(stopping.signal);
      if (stopping.signal.aborted) return;
      await read().catch(() => {});
      await sleep(ms, stopping.signal);
    }
  })();
  return () => stopping.abort();
}
