"""Steps of a person with a file: it is dropped, and its batch is started."""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import httpx2
from playwright.sync_api import Page, expect

from core.settings import ROOT
from tests.support.stack import StackProcess

INPUTS: Final = ROOT / "batch_inputs"
HOSTILE: Final = '<img src=x onerror="alert(1)"> {{ 7*7 }} </script>'


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file onto the page, once it knows its caller."""
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.evaluate(
        """([name, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(content), (char) => char.charCodeAt(0))], name));
            for (const kind of ["dragover", "drop"]) {
                document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
            }
        }""",
        [name, base64.b64encode(content).decode()],
    )


def started(page: Page, stack: StackProcess) -> dict[str, Any]:
    """The batch whose view the page has gone to."""
    page.wait_for_url(re.compile(r"#/batches/batch_"))
    batch: dict[str, Any] = httpx2.get(f"{stack.url}/v1/batches/{page.url.rpartition('/')[2]}").json()
    return batch
