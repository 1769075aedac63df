import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Webhooks");
  return html`<h1>Webhooks</h1>`;
}
