// Lines of a file on this computer, read piece by piece: a jump to line 900,000 of 200 MB neither loads the file nor blocks the page.
const PIECE = 1 << 22;
const MOST_READ = 1 << 20; // bytes of a line

export class FileLines {
  #file;
  #ends = [0]; // line ends before each piece, as far as the file was read

  constructor(file) {
    this.#file = file;
  }

  // The lines around one (from 1, blank ones count): [{number, text, isCut}]. Empty behind the end of the file.
  async around(number, context = 1) {
    const found = [];
    const first = Math.max(1, number - context);
    let begin = await this.#begin(first);
    for (let line = first; begin !== null && begin < this.#file.size && line <= number + context; line += 1) {
      const end = await this.#next(begin);
      const bytes = await this.#file.slice(begin, Math.min(end, begin + MOST_READ)).arrayBuffer();
      const text = new TextDecoder().decode(bytes).replace(/\r?\n$/, "");
      found.push({ number: line, text, isCut: end - begin > MOST_READ });
      begin = end;
    }
    return found;
  }

  async #piece(index) {
    return new Uint8Array(await this.#file.slice(index * PIECE, (index + 1) * PIECE).arrayBuffer());
  }

  // The byte at which a line begins; null behind the last line end.
  async #begin(number) {
    const wanted = number - 1;
    if (!wanted) return 0;
    for (let index = this.#ends.findLastIndex((ends) => ends < wanted); index * PIECE < this.#file.size; index += 1) {
      const bytes = await this.#piece(index);
      let seen = this.#ends[index];
      for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) {
        seen += 1;
        if (seen === wanted) return index * PIECE + at + 1;
      }
      this.#ends[index + 1] = seen;
    }
    return null;
  }

  // The byte behind the line that begins at `begin`.
  async #next(begin) {
    for (let index = Math.floor(begin / PIECE); index * PIECE < this.#file.size; index += 1) {
      const bytes = await this.#piece(index);
      const at = bytes.indexOf(10, Math.max(0, begin - index * PIECE));
      if (at >= 0) return index * PIECE + at + 1;
    }
    return this.#file.size;
  }
}

// The file with `model` in each request whose model `isUnknown`; other lines keep their bytes.
export async function withModel(file, model, isUnknown) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const parts = [];
  let rest = new Uint8Array();
  const changed = (bytes) => {
    try {
      const line = decoder.decode(bytes);
      const [begin, end] = placeOf(line, { param: "body.model" });
      return isUnknown(JSON.parse(line.slice(begin, end))) ? line.slice(0, begin) + JSON.stringify(model) + line.slice(end) : bytes;
    } catch {
      return bytes; // no JSON, or no UTF-8
    }
  };
  for (let begin = 0; begin < file.size; begin += PIECE) {
    const piece = new Uint8Array(await new Blob([rest, file.slice(begin, begin + PIECE)]).arrayBuffer());
    const lines = [];
    let at = 0;
    for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, at)) {
      lines.push(changed(piece.subarray(at, end + 1)));
      at = end + 1;
    }
    rest = piece.subarray(at);
    parts.push(new Blob(lines));
  }
  return new File([...parts, changed(rest)], file.name);
}

// [begin, end) in a line of the place that an error names: a column, or the value at `param` or the nearest object around it.
export function placeOf(line, { message = "", param = "" }) {
  const column = / \(column (\d+)\)/.exec(message);
  if (column) {
    const before = new TextEncoder().encode(line).subarray(0, column[1] - 1); // the server counts bytes
    const begin = new TextDecoder().decode(before).length;
    return begin < line.length ? [begin, begin + (/^\w+/.exec(line.slice(begin))?.[0].length || 1)] : [Math.max(0, line.length - 1), line.length];
  }
  const path = (param || "").match(/[^.[\]]+/g) || [];
  return path.length ? valueAt(line, path) : null;
}

const SPACE = /\s*/y;
const SCALAR = /"(?:[^"\\]|\\.)*"|[^\s,\]}]+/y;

function valueAt(text, path) {
  let found = null;
  let deepest = 0;
  const skip = (pattern, at) => {
    pattern.lastIndex = at;
    return pattern.exec(text) ? pattern.lastIndex : null;
  };
  // Returns the end of the value at `at`, and notes the value if it is the wanted one; throws at broken JSON.
  const value = (at, rest) => {
    const begin = skip(SPACE, at);
    let end = begin + 1;
    const [open] = text.slice(begin, end);
    if (open === "{" || open === "[") {
      const close = open === "{" ? "}" : "]";
      end = skip(SPACE, end);
      for (let index = 0; text[end] !== close; index += 1) {
        let name = String(index);
        if (open === "{") {
          const keyEnd = skip(SCALAR, end);
          name = JSON.parse(text.slice(end, keyEnd));
          end = skip(SPACE, keyEnd) + 1;
        }
        end = skip(SPACE, value(end, rest?.[0] === name ? rest.slice(1) : null));
        if (text[end] === ",") end = skip(SPACE, end + 1);
        else if (text[end] !== close) throw new SyntaxError(text[end]);
      }
      end += 1;
    } else end = skip(SCALAR, begin);
    const depth = rest ? path.length - rest.length : -1;
    if (depth >= deepest) [found, deepest] = [[begin, end], depth]; // children come before their parent; of equal keys the last one counts
    return end;
  };
  try {
    value(0, path);
  } catch {
    // a line that was cut, or is no JSON: what was found before stands
  }
  return found;
}
