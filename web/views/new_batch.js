import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("New batch");
  return html`<h1>New batch</h1>`;
}
