// Numbers, times and the states of a batch as short text for people.

const number = new Intl.NumberFormat("en");
const compactNumber = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? "–" : number.format(value));
export const compact = (value) => (value === null || value === undefined ? "–" : compactNumber.format(value));
export const plural = (value, word, words = `${word}s`) => `${count(value)} ${value === 1 ? word : words}`;

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function percent(part, whole) {
  if (!whole) return "0 %";
  const share = (100 * part) / whole;
  if (share > 0 && share < 1) return "< 1 %";
  return `${part < whole ? Math.min(Math.floor(share), 99) : 100} %`;
}

// Seconds as "45 s", "3 min", "2 h 5 min", "3 d 4 h".
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 59.5 && Number.isInteger(seconds)) return `${seconds} s`;
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10 && seconds % 1) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

export const now = () => Date.now() / 1000;
export const age = (at) => (at ? duration(Math.max(0, Math.round(now() - at))) : "–");
export const clock = (at) =>
  at ? new Date(1000 * at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "–";
export const rate = (value) => (value ? `${compact(value)} tok/s` : "–");
// Text without the controls that turn the direction of what follows, so that a name shows its letters in their order.
export const plain = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
export const short = (text, most = 60) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export const FINAL = ["completed", "failed", "expired", "cancelled"];
export const isFinal = (batch) => FINAL.includes(batch.status);
export const batchName = (batch) => plain(batch.metadata?.name || batch.input_file_name || batch.id);

// The state of a batch in plain words, and the tone of its badge: "ok", "run", "wait", "bad" or "off".
export function batchState(batch) {
  const { total, failed } = batch.request_counts;
  if (batch.status === "completed") {
    return failed ? { text: `${percent(failed, total)} failed`, tone: "bad" } : { text: "completed", tone: "ok" };
  }
  if (batch.status === "failed") return { text: "file not accepted", tone: "bad" };
  if (batch.status === "expired") return { text: "out of time", tone: "bad" };
  if (batch.status === "cancelled") return { text: "cancelled", tone: "off" };
  if (batch.status === "cancelling") return { text: "cancelling", tone: "off" };
  if (batch.paused_at) return { text: "paused", tone: "off" };
  if (batch.waiting_for_model) return { text: `waiting for model ${batch.waiting_for_model}`, tone: "wait" };
  if (batch.waiting_for) return { text: `waiting for ${batch.waiting_for}`, tone: "wait" };
  if (batch.status === "validating") return { text: "checking the file", tone: "wait" };
  if (batch.status === "finalizing") return { text: "writing the results", tone: "run" };
  return { text: "running", tone: "run" };
}
