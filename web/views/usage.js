import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Usage");
  return html`<h1>Usage</h1>`;
}
