// Columns of a table and of answers: a first mapping for a table, and the schema's shorthand `name: a|b, name: number?` as rows of a form.

export const KINDS = [["choices", "one of some words"], ["string", "text"], ["number", "number"], ["integer", "whole number"], ["boolean", "yes or no"], ["date", "date"]];

const QUOTED = /[|,?'"]|^\s|\s$/;
const quote = (text) => (QUOTED.test(text) ? (text.includes("'") ? `"${text.replaceAll('"', "")}"` : `'${text}'`) : text);
const unquote = (text) => text.trim().replace(/^(['"])(.*)\1$/, "$2");

// Rows {name, kind, choices, isOptional} as the shorthand; rows without a name are not columns yet.
export const toShorthand = (fields) =>
  fields
    .filter(({ name }) => name.trim())
    .map(({ name, kind, choices, isOptional }) => {
      const words = choices.split(",").map((word) => word.trim()).filter(Boolean);
      return `${name.trim()}: ${kind === "choices" ? words.map(quote).join("|") || "string" : kind}${isOptional ? "?" : ""}`;
    })
    .join(", ");

// The shorthand as rows; null for what the form cannot show, such as a JSON Schema, lists, or words with commas.
export function toFields(text) {
  const parts = text.match(/(?:'[^']*'|"[^"]*"|[^,])+/g) || [];
  const fields = parts.map((part) => {
    const [, name, type, optional] = /^\s*([^:{]+?)\s*:\s*(.+?)\s*(\?)?\s*$/.exec(part) || [];
    if (!name || type.endsWith("[]")) return null;
    const words = type.match(/(?:'[^']*'|"[^"]*"|[^|])+/g).map(unquote);
    const isKnown = words.length > 1 ? !words.some((word) => word.includes(",")) : KINDS.some(([kind]) => kind === type);
    return isKnown ? { name, kind: words.length > 1 ? "choices" : type, choices: words.length > 1 ? words.join(", ") : "", isOptional: Boolean(optional) } : null;
  });
  return fields.includes(null) ? null : fields;
}

// How a template names a column.
export const inserted = (column) => (/[{}%#\n]/.test(column) ? `{{ row[${JSON.stringify(column)}] }}` : `{${column}}`);

// The column that reads most like text, by the first rows.
export function textColumn(columns, rows) {
  const score = (name) => rows.reduce((sum, row) => sum + (typeof row[name] === "string" ? Math.min(2000, row[name].length) * (/\s/.test(row[name]) ? 2 : 0.2) : 0), 0);
  return columns.reduce((best, name) => (score(name) > score(best) ? name : best), columns[0]);
}

const TICKETS = "Label the support ticket. Answer with JSON: {\"category\": \"billing|shipping|technical|account\", \"priority\": \"low|medium|high\"}";

// A name that the table does not have yet.
function free(name, columns) {
  for (let number = 1; ; number += 1) {
    const tried = number > 1 ? `${name}_${number}` : name;
    if (!columns.includes(tried)) return tried;
  }
}

// A mapping to begin with: the labels that the demo model was made for, or a summary by any other model.
export function firstForm(columns, rows, model) {
  const column = inserted(textColumn(columns, rows));
  const labels = toFields("category: billing|shipping|technical|account, priority: low|medium|high");
  const fields = labels.map((field) => ({ ...field, name: free(field.name, columns) }));
  const error_column = free("error", columns);
  const shared = { model, fields, error_column, schemaText: null, where: "", limit: "", temperature: "", max_tokens: "" };
  if (model === "demo") return { ...shared, mode: "columns", system: TICKETS, prompt: column, column: "" };
  return { ...shared, mode: "text", system: "", prompt: `Summarise this in one sentence:\n\n${column}`, column: free("summary", columns) };
}

// The form as the mapping of POST /v1/batches/map.
export function toMapping(form) {
  const { model, mode, system, prompt, column, fields, schemaText, where, limit, temperature, max_tokens, parameters } = form;
  const numbers = { temperature, max_tokens };
  const given = Object.entries(numbers).filter(([, text]) => text !== "").map(([name, text]) => [name, Number(text)]);
  const mapping = { model, error_column: form.error_column, where: where.trim() || undefined, limit: limit ? Number(limit) : undefined };
  if (mode === "embed") return { ...mapping, embed: prompt, column: column.trim() || undefined };
  const all = { ...parameters, ...Object.fromEntries(given) };
  return {
    ...mapping,
    prompt,
    system: system.trim() ? system : undefined,
    ...(mode === "columns" ? { schema: schemaText ?? toShorthand(fields) } : { column: column.trim() || undefined }),
    ...(Object.keys(all).length ? { parameters: all } : {}),
  };
}

// The cells that an answer fills: {column: text}.
export function cellsOf(mode, added, answer) {
  if (mode === "embed") {
    const vector = answer.data[0].embedding;
    return { [added[0].name]: `${vector.slice(0, 3).map((value) => value.toFixed(3)).join(", ")}, … (${vector.length} numbers)` };
  }
  const { content } = answer.choices[0].message;
  if (mode === "text") return { [added[0].name]: content };
  const values = JSON.parse(content);
  return Object.fromEntries(added.map(({ name }) => [name, cellText(values[name])]));
}

export const cellText = (value) => (value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
