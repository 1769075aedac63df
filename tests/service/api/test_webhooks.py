"""Webhook endpoints through the official client, and events all the way to a receiver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.webhooks import WebhookEndpoint, WebhookEndpointWithSecret

from tests.conftest import FAKE_MODEL
from tests.support.check import check_problem
from tests.support.receiver import Receiver, SilentSocket
from tests.support.stack import StackProcess, batch_lines, start_batch, wait_for, write_lines

URL = "/v1/webhook_endpoints"
OURS = {"failing_since", "last_error", "events_delivered", "events_given_up"}
SENT = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
SENT_OF_RESPONSES = ["response.completed", "response.failed", "response.cancelled", "response.incomplete"]
BODY: dict[str, Any] = {"event_types": ["batch.completed"], "name": "test", "url": "https://1.1.1.1/hook"}


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack that may send webhooks to any host, and on this machine to 127.0.0.1 only."""
    folder = tmp_path_factory.mktemp("sending")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text(FAKE_MODEL)
    (models / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 2\nstep_seconds: 0.05\n")
    allowed = {"MILLRACE_WEBHOOK_HOSTS": "*", "MILLRACE_WEBHOOK_NETWORKS": "127.0.0.1/32"}
    process = StackProcess(folder, models, **allowed)
    process.start()
    yield process
    process.close()


@pytest.fixture
def client(sending: StackProcess) -> Iterator[OpenAI]:
    """The official client; endpoints that a test created are deleted after it."""
    with sending.client() as client:
        yield client
        for endpoint in client.webhooks.list():
            client.webhooks.delete(endpoint.id)


@pytest.fixture
def http(sending: StackProcess, client: OpenAI) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=sending.url, timeout=30) as http:
        yield http


def create(client: OpenAI, url: str = BODY["url"], **changes: Any) -> WebhookEndpointWithSecret:
    return client.webhooks.create(**{**BODY, "url": url, **changes})


# Management


def test_an_endpoint_is_the_clients_type_and_its_secret_is_shown_once(client: OpenAI, http: httpx2.Client) -> None:
    created = create(client, name="mine", event_types=["batch.failed", "batch.completed", "batch.failed"])
    assert created.signing_secret.startswith("whsec_")
    assert (created.object, created.name, created.url) == ("webhook_endpoint", "mine", BODY["url"])
    assert created.event_types == ["batch.failed", "batch.completed"]
    assert created.updated_at == created.created_at
    for shown in (http.get(f"{URL}/{created.id}"), http.get(URL), http.post(f"{URL}/{created.id}", json={})):
        assert shown.status_code == 200
        assert created.signing_secret not in shown.text
        assert 'signing_secret"' not in shown.text
    endpoint = client.webhooks.retrieve(created.id)
    assert WebhookEndpoint.model_validate_json(http.get(f"{URL}/{created.id}").content, strict=True) == endpoint
    assert set(endpoint.model_extra or ()) == OURS
    assert endpoint.signing_secret_hint == f"whsec_…{created.signing_secret[-4:]}"
    assert endpoint == client.webhooks.list().data[0]


def test_an_update_changes_the_fields_sent_and_updated_at(client: OpenAI, http: httpx2.Client) -> None:
    created = create(client)
    same = client.webhooks.update(created.id, name=created.name)
    assert same == client.webhooks.retrieve(created.id)
    assert same.updated_at == created.updated_at
    assert client.webhooks.update(created.id, name="new").name == "new"
    changed = client.webhooks.update(created.id, url="https://1.0.0.1/", event_types=["batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == ("new", "https://1.0.0.1/", ["batch.expired"])
    nothing = http.post(f"{URL}/{created.id}", json={"name": None, "url": None, "event_types": None})
    assert nothing.json()["name"] == "new"


def test_lists_come_newest_first_in_pages_that_join(client: OpenAI) -> None:
    made = [create(client, name=f"{n}").id for n in range(5)]
    assert [endpoint.id for endpoint in client.webhooks.list(limit=2)] == made[::-1]
    page = client.webhooks.list(limit=2, after=made[3])
    assert ([endpoint.id for endpoint in page.data], page.has_more) == ([made[2], made[1]], True)


def test_a_deleted_endpoint_is_gone(client: OpenAI) -> None:
    created = create(client)
    gone = client.webhooks.delete(created.id)
    assert (gone.id, gone.object, gone.deleted) == (created.id, "webhook_endpoint.deleted", True)
    for call in (
        client.webhooks.retrieve,
        client.webhooks.update,
        client.webhooks.delete,
        client.webhooks.rotate_secret,
    ):
        with pytest.raises(openai.NotFoundError):
            call(created.id)


def test_a_rotation_shows_the_new_secret(client: OpenAI) -> None:
    created = create(client)
    rotated = client.webhooks.rotate_secret(created.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.id == created.id
    assert rotated.signing_secret != created.signing_secret
    assert client.webhooks.rotate_secret(created.id).signing_secret not in (
        created.signing_secret,
        rotated.signing_secret,
    )


def test_event_types_are_those_that_are_sent(client: OpenAI) -> None:
    assert client.webhooks.event_types.list().data == [*SENT, *SENT_OF_RESPONSES]


async def async_management(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        created = await client.webhooks.create(**BODY)
        assert [endpoint.id async for endpoint in client.webhooks.list()] == [created.id]
        assert (await client.webhooks.delete(created.id)).deleted


async def test_the_asynchronous_client_manages_them_too(client: OpenAI, sending: StackProcess) -> None:
    await async_management(sending.url)


def test_there_is_a_limit(client: OpenAI, http: httpx2.Client) -> None:
    for _ in range(20):
        create(client)
    check_problem(http.post(URL, json=BODY), 400, "too_many_webhook_endpoints")


# Refusals


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"event_types": []}, "invalid_value", "event_types"),
        ({"event_types": ["batch.completed", "batch.started"]}, "invalid_value", "event_types[1]"),
        ({"event_types": "batch.completed"}, "invalid_type", "event_types"),
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "x" * 257}, "invalid_value", "name"),
        ({"name": "a\nb"}, "invalid_value", "name"),
        ({"url": 7}, "invalid_type", "url"),
        ({"url": ""}, "invalid_value", "url"),
    ],
)
def test_a_bad_body_names_the_field(http: httpx2.Client, changes: dict[str, Any], code: str, param: str) -> None:
    check_problem(http.post(URL, json={**BODY, **changes}), 400, code, param)


@pytest.mark.parametrize("field", BODY)
def test_every_field_must_be_given(http: httpx2.Client, field: str) -> None:
    body = {name: value for name, value in BODY.items() if name != field}
    check_problem(http.post(URL, json=body), 400, "missing_required_parameter", field)


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://2130706433/", "https://0x7f.1/",
        "http://1.1.1.1/", "https://1.1.1.1:22/", "https://user@1.1.1.1/", "https://1.1.1.1\\@10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/", "https://127.0.0.2/", "file:///etc/passwd", "x",
        "https://no-such-host.invalid/",
    ],
)  # fmt: skip
def test_an_address_that_may_not_be_reached_is_refused_at_once(client: OpenAI, http: httpx2.Client, url: str) -> None:
    check_problem(http.post(URL, json={**BODY, "url": url}), 400, "invalid_value", "url")
    created = create(client)
    check_problem(http.post(f"{URL}/{created.id}", json={"url": url}), 400, "invalid_value", "url")
    assert client.webhooks.retrieve(created.id).url == BODY["url"]


@pytest.mark.parametrize("webhook_id", ["we_unknown", "nonsense", "..%2f..%2fetc", "a" * 500, "%00", "😀"])
def test_ids_that_are_not_ours_are_404s(http: httpx2.Client, webhook_id: str) -> None:
    tries: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", "", None),
        ("POST", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/rotate_secret", {}),
        ("POST", "/test", {"event_type": "batch.completed"}),
        ("GET", "/deliveries", None),
    ]
    for method, path, body in tries:
        response = http.request(method, f"{URL}/{webhook_id}{path}", json=body)
        assert response.status_code == 404, (method, path, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=we_unknown", "after=%00"])
def test_bad_queries_name_the_parameter(http: httpx2.Client, query: str) -> None:
    check_problem(http.get(f"{URL}?{query}"), 400, "invalid_value", query.split("=")[0])


def test_without_named_hosts_webhooks_are_off(server: StackProcess) -> None:
    with httpx2.Client(base_url=server.url) as http, SilentSocket() as inside:
        for url in (BODY["url"], f"http://127.0.0.1:{inside.port}/"):
            check_problem(http.post(URL, json={**BODY, "url": url}), 403, "webhooks_disabled")
        assert http.get(URL).json()["data"] == []
        assert not inside.was_touched()


# Deliveries


def test_a_test_is_sent_for_any_event_type_and_returns_the_status(client: OpenAI) -> None:
    with Receiver(200, 503) as receiver:
        created = create(client, receiver.url)
        result = client.webhooks.test(created.id, event_type="batch.expired")
        assert (result.object, result.webhook_endpoint_id) == ("webhook_endpoint.test", created.id)
        assert (result.event_type, result.status_code, result.success) == ("batch.expired", 200, True)
        event = client.webhooks.unwrap(
            receiver.received[0].body, receiver.received[0].headers, secret=created.signing_secret
        )
        assert event.type == "batch.expired"
        assert client.webhooks.test(created.id, event_type="batch.failed").status_code == 503
        assert len(receiver.received) == 2, "a test is not repeated"
    shown = client.webhooks.retrieve(created.id)
    assert shown.model_extra == {
        "failing_since": None, "last_error": None, "events_delivered": 0, "events_given_up": 0,
    }  # fmt: skip
    assert shown.updated_at == created.updated_at


def test_a_test_without_an_answer_is_an_error(client: OpenAI, http: httpx2.Client) -> None:
    with SilentSocket() as gone:
        url = f"http://127.0.0.1:{gone.port}/"
    created = create(client, url)
    response = http.post(f"{URL}/{created.id}/test", json={"event_type": "batch.completed"})
    check_problem(response, 400, "webhook_delivery_failed")
    check_problem(http.post(f"{URL}/{created.id}/test", json={"event_type": "x"}), 400, "invalid_value", "event_type")


def test_deliveries_are_listed_newest_first_with_their_state_and_last_error(
    client: OpenAI, http: httpx2.Client
) -> None:
    with Receiver(503, 204) as receiver:
        created = create(client, receiver.url, event_types=["response.completed"])
        for event_type in ("batch.failed", "batch.expired"):
            client.webhooks.test(created.id, event_type=event_type)
    response = client.responses.create(model="fake", input="hello", background=True)
    url = f"{URL}/{created.id}/deliveries"

    def retrying() -> list[dict[str, Any]]:
        return http.get(url, params={"state": "retrying"}).json()["data"]

    wait_for(lambda: bool(retrying()), "the first attempt fails, since the receiver is gone")
    shown = http.get(url).json()
    real, delivered, given_up = shown["data"]
    assert (real["object"], real["event_type"], real["data"]) == (
        "webhook_delivery", "response.completed", {"id": response.id},
    )  # fmt: skip
    assert (real["is_test"], real["status_code"], real["finished_at"]) == (False, None, None)
    assert real["attempts"] >= 1
    assert real["last_error"]
    assert real["next_attempt_at"] >= real["created_at"]
    ended = [(each["state"], each["status_code"], each["attempts"], each["is_test"]) for each in (delivered, given_up)]
    assert ended == [("delivered", 204, 1, True), ("given_up", 503, 1, True)]
    assert given_up["last_error"]
    assert [each["next_attempt_at"] for each in (delivered, given_up)] == [None, None]
    pages = [http.get(url, params={"limit": 1, "after": each}).json() for each in (real["id"], delivered["id"])]
    assert [(each["data"][0]["id"], each["has_more"]) for each in pages] == [
        (delivered["id"], True),
        (given_up["id"], False),
    ]
    assert created.signing_secret not in str(shown)
    client.webhooks.delete(created.id)
    assert http.get(url).status_code == 404


@pytest.mark.parametrize("query", ["limit=0", "state=lost", "after=we_unknown", "after=%00"])
def test_a_bad_query_of_deliveries_names_the_parameter(client: OpenAI, http: httpx2.Client, query: str) -> None:
    url = f"{URL}/{create(client).id}/deliveries"
    check_problem(http.get(f"{url}?{query}"), 400, "invalid_value", query.split("=")[0])


def test_the_end_of_a_batch_is_sent_to_its_subscribers(client: OpenAI, sending: StackProcess, tmp_path: Path) -> None:
    lines = batch_lines(3)
    good = write_lines(tmp_path / "good.jsonl", lines)
    bad = write_lines(tmp_path / "bad.jsonl", [{**lines[0], "method": "GET"}])
    with Receiver(500) as receiver:
        created = create(client, receiver.url, event_types=SENT)
        deaf = create(client, receiver.url, event_types=["batch.expired"])
        ended = {start_batch(client, good): "batch.completed", start_batch(client, bad): "batch.failed"}
        wait_for(lambda: len(receiver.received) == 3, "both events, the first of them twice")
        received = {}
        for request in receiver.received:
            event = client.webhooks.unwrap(request.body, request.headers, secret=created.signing_secret)
            received[event.data.id] = event.type  # type: ignore[union-attr]
            status = client.batches.retrieve(event.data.id).status  # type: ignore[union-attr]
            assert f"batch.{status}" == event.type, "the row already has the status of the event"
        assert received == ended
        assert len({request.headers["webhook-id"] for request in receiver.received}) == 2
        wait_for(lambda: (client.webhooks.retrieve(created.id).model_extra or {})["events_delivered"] == 2, "counts")
    assert (client.webhooks.retrieve(deaf.id).model_extra or {})["events_delivered"] == 0
    assert 'millrace_webhook_events{state="delivered"} 2.0' in sending.metrics()
    assert 'millrace_webhook_events{state="waiting"} 0.0' in sending.metrics()


def test_a_test_of_a_response_event_is_about_a_response(client: OpenAI) -> None:
    with Receiver() as receiver:
        created = create(client, receiver.url)
        client.webhooks.test(created.id, event_type="response.incomplete")
    (request,) = receiver.received
    event = client.webhooks.unwrap(request.body, request.headers, secret=created.signing_secret)
    assert event.type == "response.incomplete"
    assert event.data.id.startswith("resp_")


def test_the_end_of_a_background_response_is_sent_and_of_other_responses_none(client: OpenAI) -> None:
    with Receiver() as receiver:
        created = create(client, receiver.url, event_types=SENT_OF_RESPONSES)
        asked: Any = {"model": "fake", "input": "hello", "background": True}
        plain = client.responses.create(model="fake", input="hello")
        ended = {
            client.responses.create(**asked).id: "response.completed",
            client.responses.create(**asked, max_output_tokens=5).id: "response.incomplete",
            client.responses.create(**{**asked, "input": "word " * 4000}).id: "response.failed",
        }
        slow = client.responses.create(model="slow", input="hello", background=True)
        wait_for(lambda: client.responses.retrieve(slow.id).status == "in_progress", "it runs")
        client.responses.cancel(slow.id)
        ended[slow.id] = "response.cancelled"
        wait_for(lambda: len(receiver.received) == len(ended), "all of them")
        received = {}
        for request in receiver.received:
            event = client.webhooks.unwrap(request.body, request.headers, secret=created.signing_secret)
            received[event.data.id] = event.type  # type: ignore[union-attr]
            status = client.responses.retrieve(event.data.id).status  # type: ignore[union-attr]
            assert f"response.{status}" == event.type, "the row already has the status of the event"
    assert received == ended
    assert plain.id not in received


def test_no_log_has_a_secret(client: OpenAI, sending: StackProcess) -> None:
    with Receiver() as receiver:
        created = create(client, receiver.url)
        rotated = client.webhooks.rotate_secret(created.id, keep_old_secret_active_for_24_hours=True)
        client.webhooks.test(created.id, event_type="batch.completed")
    for path in (sending.state_dir / "logs").iterdir():
        text = path.read_text()
        assert created.signing_secret not in text
        assert rotated.signing_secret not in text
