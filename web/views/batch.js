import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Batch");
  return html`<h1>Batch</h1>`;
}
