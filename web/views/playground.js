import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Playground");
  return html`<h1>Playground</h1>`;
}
