// A request as a command for a shell and as a Python program. Text of any kind is quoted so that it stays text.
const HIDDEN = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g; // control and direction characters
const visible = (text) => text.replace(HIDDEN, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);

// Parameters of OpenAI's client for chats; others go into `extra_body`.
const OPENAI = new Set("model messages temperature top_p max_tokens max_completion_tokens seed stop frequency_penalty presence_penalty n logprobs top_logprobs response_format tools tool_choice stream stream_options".split(" "));

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(url, body, hasKey) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $OPENAI_API_KEY"` : "";
  return `curl ${shell(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shell(visible(JSON.stringify(body, null, 2)))}\n`;
}

export function asPython(url, body, hasKey) {
  const known = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const named = [...known, ...(Object.keys(extra).length ? [["extra_body", extra]] : [])];
  const lines = named.map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const key = hasKey ? "" : `, api_key="any"`;
  return `from openai import OpenAI

client = OpenAI(base_url=${python(url)}${key})${hasKey ? "  # the key is read from OPENAI_API_KEY" : ""}
answer = client.chat.completions.create(
${lines})
print(answer.choices[0].message.content)
`;
}

// A value as a Python literal. JSON's strings are Python's, too.
function python(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return visible(JSON.stringify(value));
  const inner = `${indent}    `;
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((each) => python(each, inner))
    : Object.entries(value).map(([name, each]) => `${visible(JSON.stringify(name))}: ${python(each, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length + indent.length < 90 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}
