import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Models");
  return html`<h1>Models</h1>`;
}
