// A long list of rows of one height, of which only those in view are in the page.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";

const MARGIN = 8; // rows kept above and below the view

// `count` rows, `row(index)` renders one; `onRange(first, last)` says which are in view, so that their data can be loaded.
// The list scrolls with the page. `label` names it; rows have the ARIA roles of a table: `row(index)` returns cells.
export function VirtualList({ count, height, row, onRange = () => {}, label, header = null, keyOf = (index) => index }) {
  const ref = useRef(null);
  const [range, setRange] = useState([0, Math.min(count, Math.ceil(innerHeight / height) + MARGIN)]);
  const look = () => {
    if (!ref.current) return;
    const top = -ref.current.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / height) - MARGIN);
    const last = Math.min(count, Math.max(MARGIN, Math.ceil((top + innerHeight) / height) + MARGIN)); // some rows also below the view
    setRange((old) => (old[0] === first && old[1] === last ? old : [first, Math.max(first, last)]));
  };
  useLayoutEffect(look, [count, height]);
  useEffect(() => {
    addEventListener("scroll", look, { passive: true, capture: true });
    addEventListener("resize", look);
    return () => {
      removeEventListener("scroll", look, { capture: true });
      removeEventListener("resize", look);
    };
  });
  useEffect(() => onRange(range[0], Math.min(range[1], count)), [range, count]);
  const [first, last] = [range[0], Math.min(range[1], count)];
  const shown = [];
  for (let index = first; index < last; index += 1) {
    shown.push(html`<div key=${keyOf(index)} role="row" aria-rowindex=${index + 2} class="vrow" style=${{ height: `${height}px` }}>${row(index)}</div>`);
  }
  return html`<div class="vlist" role="table" aria-label=${label} aria-rowcount=${count + 1}>
    ${header && html`<div role="rowgroup"><div role="row" aria-rowindex="1" class="vrow head">${header}</div></div>`}
    <div role="rowgroup" ref=${ref} style=${{ height: `${count * height}px`, paddingTop: `${first * height}px`, boxSizing: "border-box" }}>${shown}</div>
  </div>`;
}
