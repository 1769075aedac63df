// Sends a file in parts, so that a lost connection costs one part: `send` again goes on behind the last part that arrived.
import { del, post, upload } from "./api.js";
import { sleep } from "./sse.js";

const PART_BYTES = 8 << 20;
const MOST_TRIES = 4;

export class Resumable {
  #parts = [];
  #upload = null;

  constructor(file, name, purpose) {
    Object.assign(this, { file, name, purpose, id: null }); // `id` is that of the stored file
  }

  async send({ onProgress, signal }) {
    const { file, name, purpose } = this;
    if (this.id) return this.id;
    const body = { filename: name, bytes: file.size, mime_type: file.type || "application/octet-stream", purpose };
    if (purpose !== "batch") body.expires_after = { anchor: "created_at", seconds: 30 * 86_400 }; // others are kept for ever
    this.#upload ??= (await again(() => post("/v1/uploads", body), signal)).id;
    for (let begin = PART_BYTES * this.#parts.length; begin < file.size; begin += PART_BYTES) {
      const part = file.slice(begin, begin + PART_BYTES);
      const send = () => {
        const form = new FormData();
        form.append("data", part);
        const progress = (share) => onProgress((begin + share * part.size) / file.size);
        return upload(`/v1/uploads/${this.#upload}/parts`, form, { onProgress: progress, signal });
      };
      this.#parts.push((await this.#orAnew(() => again(send, signal))).id);
    }
    const end = () => post(`/v1/uploads/${this.#upload}/complete`, { part_ids: this.#parts });
    this.id = (await this.#orAnew(() => again(end, signal))).file.id;
    return this.id;
  }

  // An upload that has expired meanwhile begins anew with the next `send`.
  async #orAnew(call) {
    try {
      return await call();
    } catch (error) {
      if (error.status === 400 || error.status === 404) [this.#upload, this.#parts] = [null, []];
      throw error;
    }
  }

  // Remove what was stored of a file that is not used after all.
  discard() {
    const gone = () => {};
    if (this.id) del(`/v1/files/${this.id}`).catch(gone);
    else if (this.#upload) post(`/v1/uploads/${this.#upload}/cancel`).catch(gone);
  }
}

// Call until it works, a few times where that may help: without a connection, or at a server that is busy or restarts.
async function again(call, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call();
    } catch (error) {
      const { status, code } = error;
      const isPassing = status === 0 || (status === 429 && code !== "insufficient_quota") || (status >= 500 && status !== 507);
      if (!isPassing || tries === MOST_TRIES || signal?.aborted) throw error;
      await sleep(500 * 2 ** tries, signal);
    }
  }
}

// A key under which a POST may be repeated: the same for the same call as long as the page is open.
const keys = new Map();
export function idempotent(path, body) {
  const call = path + JSON.stringify(body);
  if (!keys.has(call)) keys.set(call, [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
  return { "idempotency-key": keys.get(call) };
}
