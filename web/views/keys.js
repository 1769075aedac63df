import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Keys");
  return html`<h1>Keys</h1>`;
}
