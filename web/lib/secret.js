// A dialog with a secret that is shown once: it is closed after it was copied, or after a question.
import { html, useRef } from "./html.js";
import { ask, CopyButton, Dialog, Field } from "./ui.js";

export function SecretDialog({ title, label, secret, warning, onClose, children }) {
  const isCopied = useRef(false);
  const copied = () => (isCopied.current = true);
  const close = async () => {
    const text = "It is not stored, so it can never be shown again.";
    if (isCopied.current || (await ask({ title: "Close without copying it?", text, action: "Close", isDanger: true }))) onClose();
  };
  return html`<${Dialog} title=${title} onClose=${close}>
    ${warning && html`<p class="note"><strong>${warning}</strong></p>`}
    <${Field} label=${label} hint="It is shown this once. Copy it now and keep it where only its user can read it.">
      ${(props) => html`<input ...${props} autofocus class="mono" readonly value=${secret} onCopy=${copied} onFocus=${(event) => event.target.select()} />`}<//>
    ${children}
    <div class="row end"><span onClick=${copied}><${CopyButton} text=${secret} /></span>
      <button type="button" class="button primary" onClick=${close}>Done</button></div>
  <//>`;
}
