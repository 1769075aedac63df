"""The receiver and the tables of `docs/webhooks.md`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_network
from typing import get_args

from openai.types.webhooks import UnwrapWebhookEvent

from core.schemas.webhooks import EVENT_TYPES
from core.settings import ROOT, Settings
from core.url_guard import UrlGuard
from tests.support.receiver import SilentSocket
from tests.support.stack import wait_for
from workers.maintenance.webhook_sender import SendResult, WebhookRequest, WebhookSender

PAGE = (ROOT / "docs" / "webhooks.md").read_text()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD = '{"id":"evt_1","object":"event","type":"batch.completed","created_at":1,"data":{"id":"batch_1"}}'


def receiver_of_the_page(port: int) -> str:
    (code,) = re.findall(r"```python\n(from http.server .*?)```", PAGE, re.DOTALL)
    return str(code).replace("8080", str(port))


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def post(port: int, secret: str) -> SendResult:
    sender = WebhookSender(UrlGuard(hosts=("*",), networks=(ip_network("127.0.0.1/32"),)))
    request = WebhookRequest(event_id="evt_1", url=f"http://127.0.0.1:{port}/", secrets=(secret,), payload=PAYLOAD)
    try:
        return await sender.send(request)
    finally:
        sender.close()


async def test_the_receiver_of_the_page_accepts_only_our_signatures() -> None:
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
            assert (await post(port, "whsec_b3RoZXIgc2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXM=")).error
            assert await post(port, SECRET) == SendResult(status_code=204)
            assert process.stdout is not None
            assert process.stdout.readline() == "batch.completed batch_1\n"
        finally:
            process.kill()


def test_the_table_of_events_has_every_type_that_is_sent_and_no_other() -> None:
    section = PAGE.split("## Events\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)
    assert sorted(named) == sorted(EVENT_TYPES)


def test_every_type_that_is_sent_is_one_of_the_official_clients() -> None:
    theirs = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(UnwrapWebhookEvent)[0])}
    assert set(EVENT_TYPES) <= theirs


def test_the_settings_of_the_page_are_those_of_the_code() -> None:
    named = set(re.findall(r"^\| `MILLRACE_([A-Z_]+)` \|", PAGE, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields if name.startswith("webhook_")}
    assert f"for {Settings().webhook_hours:.0f} hours" in PAGE
