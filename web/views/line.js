import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Line");
  return html`<h1>Line</h1>`;
}
