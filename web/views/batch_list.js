// The rows of the list of batches, newest first: pages of the API where one looks, and the stream of changes. Ids sort by time.
import { get, withQuery } from "../lib/api.js";
import { batchName, isFinal } from "../lib/format.js";

const FIRST_PAGE = 30; // enough for the first view
const PAGE = 100;
const AHEAD = 40; // rows loaded before they are in view
const MARGIN = 8; // of the virtual list: rows above the view

const OPEN = ["validating", "in_progress", "finalizing", "cancelling"];

// The filter by status: its name in the address, its text, and the statuses that it asks the API for.
export const STATUSES = [
  ["", "Any status", []],
  ["open", "Not ended", OPEN],
  ["in_progress", "Running", ["in_progress"]],
  ["paused", "Paused", ["paused"]],
  ["completed", "Completed", ["completed"]],
  ["problem", "Failed or out of time", ["failed", "expired"]],
  ["cancelled", "Cancelled", ["cancelling", "cancelled"]],
];

export const isPaused = (batch) => Boolean(batch.paused_at) && !isFinal(batch) && batch.status !== "cancelling";
const statusesOf = (name) => STATUSES.find(([known]) => known === name)?.[2] || [];

// Does the filter of the API find this batch? Models of a batch of several are not known here, so it stays if it was found.
function fits(batch, { status, model, q }, isKnown) {
  const statuses = statusesOf(status);
  const isInState = !statuses.length || statuses.includes(batch.status) || (statuses.includes("paused") && isPaused(batch));
  const isOfModel = !model || batch.model === model || (isKnown && !batch.model);
  const texts = [batch.id, batchName(batch), batch.input_file_name || ""];
  return isInState && isOfModel && (!q || texts.some((text) => text.toLowerCase().includes(q.toLowerCase())));
}

export class BatchList {
  items = [];
  hasMore = true;
  isLoaded = false;
  error = null;
  shift = 0; // rows that came or went above the view since the page has last scrolled by them
  #range = [0, 0];
  #generation = 0; // raised when changes may have been missed; a row that was read before is read again once it is in view
  #topAt = -1;
  #readAt = new Map(); // id -> generation
  #changedAt = new Map(); // id -> time of its last event, which is newer than a page that was asked for before
  #isBusy = false;
  #stopping = new AbortController();

  constructor(filter, onChange) {
    this.filter = filter;
    this.onChange = onChange;
  }

  stop = () => this.#stopping.abort();

  show(first, last) {
    this.#range = [first, last];
    this.load();
  }

  // Read what is in view again, and the rest when it comes into view.
  renew() {
    this.#generation += 1;
    this.load();
  }

  // Take the new state of a batch, from the stream or as the answer to an action.
  apply(batch) {
    const at = this.#place(batch.id);
    const isKnown = this.items[at]?.id === batch.id;
    const isWanted = fits(batch, this.filter, isKnown);
    if (!isKnown && (!isWanted || (this.isLoaded && this.hasMore && at === this.items.length))) return;
    this.#keepingPlace(() => this.items.splice(at, isKnown ? 1 : 0, ...(isWanted ? [batch] : [])));
    this.#changedAt.set(batch.id, performance.now());
    this.#readAt.set(batch.id, this.#generation);
    this.onChange();
  }

  async load() {
    if (this.#isBusy || this.#stopping.signal.aborted) return;
    this.#isBusy = true;
    try {
      for (let after = this.#missing(); after !== undefined; after = this.#missing()) {
        const [asked, generation] = [performance.now(), this.#generation];
        const { status, ...rest } = this.filter;
        const limit = this.isLoaded ? PAGE : FIRST_PAGE;
        const path = withQuery("/v1/batches", { ...rest, status: statusesOf(status), after, limit });
        this.#merge(after, await get(path, { signal: this.#stopping.signal }), asked, generation);
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      this.error = error;
    } finally {
      this.#isBusy = false;
      this.onChange();
    }
  }

  // The place behind which rows are missing or old: null for the top, undefined if there is none.
  #missing() {
    const { items } = this;
    if (this.#topAt < this.#generation) return null;
    const [first, last] = this.#range;
    for (let index = first; index < Math.min(last, items.length); index += 1) {
      if (this.#readAt.get(items[index].id) < this.#generation) return items[index - 1]?.id ?? null;
    }
    return this.hasMore && last + AHEAD >= items.length ? (items.at(-1)?.id ?? null) : undefined;
  }

  // Put a page in the place of the rows between `after` and its last one, apart from those that have changed meanwhile.
  #merge(after, page, asked, generation) {
    const from = after === null ? 0 : this.#place(after) + (this.items[this.#place(after)]?.id === after ? 1 : 0);
    const end = page.has_more ? this.#place(page.last_id) : this.items.length;
    const to = page.has_more && this.items[end]?.id === page.last_id ? end + 1 : end;
    const isNewer = ({ id }) => this.#changedAt.get(id) > asked;
    const rows = [...this.items.slice(from, to).filter(isNewer), ...page.data.filter((batch) => !isNewer(batch))];
    rows.sort((one, other) => (one.id < other.id ? 1 : -1));
    for (const { id } of rows) this.#readAt.set(id, generation);
    const isLast = to >= this.items.length;
    this.#keepingPlace(() => {
      this.items.splice(from, to - from, ...rows);
      if (!this.isLoaded && page.has_more) this.items.length = from + rows.length; // events came before the first page
    });
    if (isLast || !this.isLoaded) this.hasMore = page.has_more;
    if (after === null) this.#topAt = generation;
    this.isLoaded = true;
    this.error = null;
    this.onChange();
  }

  // The index of the first row that is not newer than `id`.
  #place(id) {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.items[middle].id > id) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #keepingPlace(change) {
    const top = this.#range[0] && this.#range[0] + MARGIN + this.shift;
    const anchor = top && this.items[top]?.id;
    change();
    if (anchor) this.shift += this.#place(anchor) - top;
  }
}
