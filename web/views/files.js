import { html } from "../lib/html.js";
import { useTitle } from "../lib/ui.js";

export default function View() {
  useTitle("Files");
  return html`<h1>Files</h1>`;
}
