"""`docs/webhooks.md`: its receiver receives."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_network

from core.addresses import AddressRules
from core.settings import ROOT
from tests.receiver import SilentSocket
from tests.stack import wait_for
from workers.posting import Letter, Outcome, Poster

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD = '{"id":"evt_1","object":"event","type":"batch.completed","created_at":1,"data":{"id":"batch_1"}}'


def receiver_of_the_page(port: int) -> str:
    page = (ROOT / "docs" / "webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(from http.server .*?)```", page, re.DOTALL)
    return str(code).replace("8080", str(port))


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def post(port: int, secret: str) -> Outcome:
    poster = Poster(AddressRules(hosts=("*",), networks=(ip_network("127.0.0.1/32"),)))
    letter = Letter(event_id="evt_1", url=f"http://127.0.0.1:{port}/", secrets=(secret,), payload=PAYLOAD)
    try:
        return asyncio.run(poster.post(letter))
    finally:
        poster.close()


def test_the_receiver_of_the_page_takes_ours_and_nobody_elses() -> None:
    with SilentSocket() as free:
        port = free.port
    with subprocess.Popen(
        [sys.executable, "-c", receiver_of_the_page(port)],
        env={**os.environ, "OPENAI_WEBHOOK_SECRET": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            wait_for(lambda: is_open(port), "the receiver listens")
            assert post(port, "whsec_b3RoZXIgc2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXM=").error
            assert post(port, SECRET) == Outcome(status_code=204)
            assert process.stdout is not None
            assert process.stdout.readline() == "batch.completed batch_1\n"
        finally:
            process.kill()
