// The kind of a file on this computer by its first bytes: requests of a batch, a table, or neither, with the reason.
const HEAD_BYTES = 65_536;
const WANTED = "Use JSON Lines with requests, or a table: CSV, TSV, Excel (.xlsx), Parquet, or JSON Lines with one row per line.";
const PACKED = "Unpack it and drop the file inside.";
const MAGIC = [
  ["89504e47", "an image"], ["ffd8ff", "an image"], ["47494638", "an image"], ["25504446", "a PDF"], ["47475546", "a model"],
  ["1f8b", "compressed", PACKED], ["28b52ffd", "compressed", PACKED], ["425a68", "compressed", PACKED], ["fd377a58", "compressed", PACKED],
  ["377abcaf", "an archive", PACKED], ["52617221", "an archive", PACKED],
  ["d0cf11e0", "an old Excel or Word file", "Save it as .xlsx or CSV."],
];

// {kind: "batch"}, {kind: "table"}, or {kind: null, reason} for people.
export async function kindOf(file) {
  let head;
  try {
    head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  } catch {
    return refused(`“${file.name}” cannot be read. If it is a folder, drop a file of it.`);
  }
  if (!head.length) return refused(`“${file.name}” is empty.`);
  const magic = [...head.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (magic === "50415231") return { kind: "table" }; // PAR1
  if (magic === "504b0304") {
    return /\.xls[xm]$/i.test(file.name) ? { kind: "table" } : refused(`“${file.name}” is a zip archive or an Office file. ${PACKED} Of Excel, .xlsx is taken.`);
  }
  const known = MAGIC.find(([start]) => magic.startsWith(start));
  if (known) return refused(`“${file.name}” is ${known[1]}. ${known[2] || WANTED}`);
  const isUtf16 = magic.startsWith("fffe") || magic.startsWith("feff");
  if (!isUtf16 && head.includes(0)) return refused(`“${file.name}” is not text. ${WANTED}`);
  return textKind(new TextDecoder(magic.startsWith("feff") ? "utf-16be" : isUtf16 ? "utf-16le" : "utf-8").decode(head), file.name, isUtf16);
}

const refused = (reason) => ({ kind: null, reason });

function textKind(text, name, isUtf16) {
  const lines = text.split("\n").filter((line) => line.trim());
  if (!/^\s*[[{]/.test(text)) return { kind: /\.jsonl$/i.test(name) && !isUtf16 ? "batch" : "table" };
  for (const line of lines.slice(0, 5)) {
    const row = parsed(line);
    if (!row) continue;
    if (row.custom_id && "response" in row && "error" in row) return refused(`“${name}” has the results of a batch, not requests.`);
    const isRequest = typeof row.body === "object" || ("custom_id" in row && ["method", "url", "body"].some((name) => name in row));
    return { kind: isRequest ? "batch" : "table" };
  }
  return { kind: "batch" }; // the server explains each line
}

function parsed(line) {
  try {
    const value = JSON.parse(line);
    return value && !Array.isArray(value) && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}
