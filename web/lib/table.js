// A table whose rows become cards on a narrow screen, and the loading of a list page by page.
import { html, useRef, useState } from "./html.js";
import { get, withQuery } from "./api.js";
import { Button, toastError } from "./ui.js";

// `head` has [text, class] of each column, `rows` the cells of each row by key: [key, cells, class]. The first cell names its row.
export const Table = ({ label, head, rows }) => html`<table class="cards" role="table" aria-label=${label}>
  <thead role="rowgroup"><tr role="row">${head.map(([text, kind = ""]) => html`<th role="columnheader" scope="col" class=${kind}>${kind === "actions" ? html`<span class="sr">${text}</span>` : text}</th>`)}</tr></thead>
  <tbody role="rowgroup">${rows.map(([key, cells, rowKind = ""]) => html`<tr role="row" key=${key} class=${rowKind}>${cells.map((cell, n) => {
    const [text, kind = ""] = head[n];
    return n ? html`<td role="cell" data-label=${text} class=${kind}>${cell}</td>` : html`<th role="rowheader" scope="row" class=${kind}>${cell}</th>`;
  })}</tr>`)}</tbody>
</table>`;

// A list of the API: `load()` reads its first page (again), `more` is a button while there are further ones.
export function useList(path, query = {}, limit = 100) {
  const [state, setState] = useState({ items: null, hasMore: false, error: null });
  const last = useRef(0); // an answer to an earlier question comes too late
  const read = async (after) => {
    const question = ++last.current;
    const page = await get(withQuery(path, { ...query, limit, after }));
    if (question !== last.current) return;
    setState((old) => ({ items: after ? [...old.items, ...page.data] : page.data, hasMore: page.has_more, error: null }));
  };
  const load = () => read().catch((error) => setState((old) => (old.items ? (toastError(error), old) : { ...old, error })));
  const more = state.hasMore && html`<p class="row"><${Button} onClick=${() => read(state.items.at(-1).id)}>Show more<//></p>`;
  return { ...state, load, more };
}
