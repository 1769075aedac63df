import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Batches");
  return html`<h1>Batches</h1>`;
}
