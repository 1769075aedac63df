"""Keys, usage, webhooks and files in the page: the gate, the first key, few rights, secrets that are shown once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import text

from tests.browser.journey import Journey
from tests.support.guarded import Guarded, Key, write_guarded_models
from tests.support.receiver import Receiver
from tests.support.stack import StackProcess, batch_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

# The control of direction in it is shown as a replacement character.
HOSTILE = "<img src=x onerror=alert(1)> \"' </script> {{7*7}} \u202egnp.exe"
SHOWN = HOSTILE.replace("\u202e", "\ufffd")
Open = Callable[..., Journey]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A stack with keys, which may send webhooks to this machine."""
    folder = tmp_path_factory.mktemp("guarded")
    write_guarded_models(folder / "models")
    process = StackProcess(
        folder,
        folder / "models",
        MILLRACE_KEY_CACHE_SECONDS="0",
        MILLRACE_WEBHOOK_HOSTS="*",
        MILLRACE_WEBHOOK_NETWORKS="127.0.0.1/32",
    )
    process.start()
    running = Guarded(process)
    yield running
    running.close()


def enter(journey: Journey, key: Key, address: str) -> Page:
    """Open a view, and give the key that the server asks for."""
    journey.expect_errors("401")
    page = journey.open(address)
    page.get_by_label("API key").fill(key.text)
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("navigation")).to_be_visible()
    return page


def dialog(page: Page, title: str) -> Locator:
    return page.get_by_role("dialog", name=title)


def take_secret(page: Page, title: str, label: str) -> str:
    """Copy the secret of a dialog and close it; until then closing asks a question."""
    shown = dialog(page, title)
    secret = shown.get_by_label(label).input_value()
    expect(shown.get_by_label(label)).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(1)
    shown.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied").last).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    shown.get_by_role("button", name="Done").click()
    expect(shown).to_be_hidden()
    assert secret not in page.content()
    return secret


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has_text=name)


def test_a_server_with_keys_asks_for_one_and_the_tab_keeps_it(guarded: Guarded, open_journey: Open) -> None:
    journey = open_journey(guarded.url)
    journey.expect_errors("401")
    page = journey.open("#/models")
    field = page.get_by_label("API key")
    for wrong, said in (("sk-1f9c02ab…", "This is no key"), ("sk-wrong", "does not accept this key")):
        field.fill(wrong)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_text(said)).to_be_visible()
        expect(field).to_have_value(wrong)
    journey.screenshots("gate")
    field.fill(f"  {guarded.owner.text} ")
    field.press("Enter")
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    other = page.context.new_page()
    other.goto(guarded.url)
    expect(other.get_by_label("API key")).to_be_visible()
    other.close()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_that_ends_is_asked_for_again_over_the_view(guarded: Guarded, open_journey: Open) -> None:
    key, next_key = guarded.key(scopes=["admin"]), guarded.key(scopes=["admin"])
    journey = open_journey(guarded.url)
    page = enter(journey, key, "#/keys")
    page.get_by_role("button", name="Create a key").click()
    page.get_by_label("Name", exact=True).fill("typed before")
    guarded.owner.http.post(f"/v1/api_keys/{key.id}/revoke")
    page.get_by_role("button", name="Create it").click()
    asked = dialog(page, "A valid key is needed")
    expect(asked).to_be_visible()
    asked.get_by_label("API key").fill(next_key.text)
    asked.get_by_role("button", name="Enter").click()
    expect(asked).to_be_hidden()
    expect(page.get_by_label("Name", exact=True)).to_have_value("typed before")


def test_the_first_key_is_made_in_the_page_which_goes_on_with_it(fake_stack: StackProcess, open_journey: Open) -> None:
    journey = open_journey(fake_stack.url)
    page = journey.open("#/keys")
    expect(page.get_by_text("This server needs no key yet")).to_be_visible()
    page.get_by_role("button", name="Create a key").click()
    first = dialog(page, "Create the first key")
    expect(first.get_by_text("every request needs a key")).to_be_visible()
    expect(first.get_by_label("Name")).to_be_focused()
    page.keyboard.insert_text(HOSTILE)
    box = first.get_by_label("Name").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(10, 10)
    page.mouse.up()  # a selection that ends beside the dialog does not close it
    page.keyboard.press("Enter")
    shown = dialog(page, f"The key “{SHOWN}”")
    expect(shown.get_by_text("now needs a key")).to_be_visible()
    journey.screenshots("keys-secret")
    secret = take_secret(page, f"The key “{SHOWN}”", "API key")
    expect(row(page, SHOWN)).to_contain_text("this page")
    assert httpx2.get(f"{fake_stack.url}/v1/me").status_code == 401
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx2.get(f"{fake_stack.url}/v1/me", headers=headers).json()["scopes"] == ["admin"]
    page.reload()
    expect(row(page, SHOWN)).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_a_key_with_few_rights_sees_only_what_it_may_do(guarded: Guarded, open_journey: Open) -> None:
    journey = open_journey(guarded.url)
    page = enter(journey, guarded.key(scopes=["files"]), "")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    links = page.get_by_role("navigation").get_by_role("link")
    expect(links).to_have_text(["Files", "API"])
    page.goto(f"{guarded.url}/#/keys")
    expect(page.get_by_text("Your key may not see this")).to_be_visible()
    expect(page.get_by_role("main").get_by_text("read-only")).to_be_visible()
    journey.screenshots("few-rights")
    page.get_by_role("button", name="Sign out").click()
    reader = enter(open_journey(guarded.url), guarded.key("readers", scopes=["read-only"]), "#/files")
    for view, forbidden, scope in (
        ("files", "Upload a file", "files"),
        ("webhooks", "Create an endpoint", "admin"),
        ("keys", "Create a key", "admin"),
    ):
        reader.goto(f"{guarded.url}/#/{view}")
        expect(reader.locator(".note code")).to_have_text(scope)
        expect(reader.get_by_role("button", name=forbidden)).to_have_count(0)
    expect(reader.get_by_role("button", name="Revoke")).to_have_count(0)


def test_a_key_is_created_with_limits_rotated_and_revoked(guarded: Guarded, open_journey: Open) -> None:
    journey = open_journey(guarded.url)
    admin = guarded.key("makers", scopes=["admin"])
    page = enter(journey, admin, "#/keys")
    page.get_by_role("button", name="Create a key").click()
    made = dialog(page, "Create a key")
    made.get_by_label("Name").fill("nightly")
    made.get_by_text("only some").click()
    made.get_by_label("fake", exact=True).check()
    made.get_by_label("other", exact=True).uncheck()
    made.get_by_label("slow", exact=True).uncheck()
    made.get_by_label("Ends").select_option("in 30 days")
    made.get_by_text("Limits").click()
    made.get_by_label("Requests to a model per minute").fill("0")
    journey.screenshots("keys-create")
    journey.expect_errors("400")
    made.get_by_role("button", name="Create it").click()
    expect(made.get_by_text("Invalid value for 'requests_per_minute'")).to_be_visible()
    made.get_by_label("Requests to a model per minute").fill("60")
    made.get_by_role("button", name="Create it").click()
    secret = take_secret(page, "The key “nightly”", "API key")
    shown = row(page, "nightly")
    expect(shown).to_contain_text("only fake")
    expect(shown).to_contain_text("Requests to a model per minute: 60")
    with guarded.http(secret) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["fake", "also-fake"]

    page.get_by_role("button", name="Rotate nightly").click()
    turned = dialog(page, "Rotate “nightly”")
    turned.get_by_label("The old key ends").select_option("at once")
    turned.get_by_role("button", name="Rotate it").click()
    new_secret = take_secret(page, "The key “nightly”", "API key")
    page.get_by_label("Show the 1 that ended").check()
    expect(row(page, "nightly")).to_have_count(2)
    journey.screenshots("keys")
    with guarded.http(secret) as before, guarded.http(new_secret) as after:
        assert (before.get("/v1/me").status_code, after.get("/v1/me").status_code) == (401, 200)

    page.get_by_role("button", name="Revoke nightly").click()
    dialog(page, "Revoke “nightly”?").get_by_role("button", name="Revoke it").click()
    expect(page.get_by_text("“nightly” is revoked.")).to_be_visible()
    with guarded.http(new_secret) as after:
        assert after.get("/v1/me").status_code == 401
    page.get_by_role("button", name="Rotate test").click()
    dialog(page, "Rotate “test”").get_by_role("button", name="Rotate it").click()
    take_secret(page, "The key “test”", "API key")
    expect(row(page, "this page").get_by_text("never")).to_be_visible()
    row(page, "this page").get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.get_by_label("API key")).to_be_visible()


def test_usage_is_a_chart_and_a_table_by_model_key_and_kind(guarded: Guarded, open_journey: Open) -> None:
    admin, other = guarded.key("counted", scopes=["admin"]), guarded.key("counted")
    rows = text(
        "INSERT INTO usage_daily (tenant_id, model, day, key_id, requests, prompt_tokens, completion_tokens, cached_tokens) "
        "SELECT 'counted', model, current_date - n, key, 10 + n, 10000 * (n % 7 + 1), 3000 * (n % 5 + 1), 2000 "
        "FROM generate_series(0, 25) n, unnest(ARRAY['fake', 'lab/other-7b']) model, unnest(cast(:keys AS text[])) key"
    )
    with guarded.database.begin() as connection:
        connection.execute(rows, {"keys": [admin.id, other.id]})
    journey = open_journey(guarded.url)
    page = enter(journey, admin, "#/usage")
    expect(page.locator(".u-legend")).to_contain_text("lab/other-7b")
    table = page.get_by_role("table", name="Tokens by model")
    expect(table.get_by_role("row")).to_have_count(3)
    expect(
        page.get_by_role("img", name=re.compile(r"Tokens per day\. [\d,]+ tokens in [\d,]+ requests"))
    ).to_be_visible()
    journey.screenshots("usage")
    page.get_by_label("By", exact=True).select_option("key")
    keys = page.get_by_role("table", name="Tokens by key")
    expect(keys.get_by_role("row").nth(1)).to_contain_text("test (sk-")
    page.get_by_label("By", exact=True).select_option("kind of token")
    expect(page.locator(".u-legend")).to_contain_text("Input from the cache")
    page.get_by_label("Span").select_option("7 days")
    expect(page.get_by_role("table", name="Tokens by day").get_by_role("row")).to_have_count(8)
    empty = enter(open_journey(guarded.url), guarded.key("unused", scopes=["read-only"]), "#/usage")
    expect(empty.get_by_text("No tokens in 30 days")).to_be_visible()


def test_a_webhook_whose_receiver_fails_shows_its_last_error(guarded: Guarded, open_journey: Open) -> None:
    journey = open_journey(guarded.url)
    journey.expect_errors("400")
    key = guarded.key("hooked", scopes=["admin"])
    page = enter(journey, key, "#/webhooks")
    expect(page.get_by_text("No endpoints yet")).to_be_visible()
    page.get_by_role("button", name="Create an endpoint").click()
    made = dialog(page, "Create an endpoint")
    made.get_by_label("Name").fill(HOSTILE)
    made.get_by_label("URL").fill("https://10.0.0.1/x")
    made.get_by_label("response.completed").check()
    made.get_by_role("button", name="Create it").click()
    expect(made.get_by_text("Invalid value for 'url'")).to_be_visible()
    expect(made.get_by_label("Name")).to_have_value(HOSTILE)
    journey.screenshots("webhooks-create")
    with Receiver(503, *[500] * 50) as receiver:
        made.get_by_label("URL").fill(f"{receiver.url}&x=%3Cscript%3Ealert(1)%3C/script%3E")
        made.get_by_role("button", name="Create it").click()
        secret = take_secret(page, f"The secret of “{SHOWN}”", "Signing secret")
        assert secret.startswith("whsec_")
        page.get_by_role("link", name=SHOWN).click()
        expect(page.get_by_text("Nothing was sent yet.")).to_be_visible()
        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_text("answered the test with 503")).to_be_visible()
        key.client.responses.create(model="fake", input="hello", background=True)
        expect(row(page, "response.completed")).to_contain_text("retrying")
        expect(row(page, "response.completed")).to_contain_text("500")
        expect(page.get_by_text("failing").first).to_be_visible()
        journey.screenshots("webhook")
        page.get_by_label("State").select_option("given up")
        expect(row(page, "response.completed")).to_have_count(0)
        expect(row(page, "batch.completed")).to_contain_text("test")
        page.get_by_role("button", name="Replace the secret").click()
        page.get_by_role("button", name="Replace it").click()
        assert take_secret(page, f"The secret of “{SHOWN}”", "Signing secret") != secret
        page.get_by_role("button", name="Change").click()
        dialog(page, f"Change “{SHOWN}”").get_by_label("Name").fill("labels")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("heading", name="labels", level=1)).to_be_visible()
        page.get_by_role("main").get_by_role("link", name="Webhooks").click()
        expect(row(page, "labels")).to_contain_text("failing")
        page.get_by_role("link", name="labels").click()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_text("No endpoints yet")).to_be_visible()


def test_files_are_uploaded_downloaded_and_deleted(guarded: Guarded, open_journey: Open, tmp_path: Path) -> None:
    journey = open_journey(guarded.url)
    key = guarded.key("filers", scopes=["admin"])
    page = enter(journey, key, "#/files")
    expect(page.get_by_text("No files yet")).to_be_visible()
    page.get_by_role("button", name="Upload a file").click()
    name = HOSTILE.replace("/", "\u2044").replace('"', "") + ".csv"  # browsers write %22 for a quote
    shown = name.replace("\u202e", "")  # the api drops it
    sent = dialog(page, "Upload a file")
    sent.get_by_label("File").set_input_files({"name": name, "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"})
    expect(sent.get_by_label("Purpose")).to_have_value("user_data")
    sent.get_by_role("button", name="Upload", exact=True).click()
    expect(row(page, shown)).to_contain_text("8 B")
    with page.expect_download() as waiting:
        row(page, shown).get_by_role("button", name="Download").click()
    assert Path(waiting.value.path()).read_bytes() == b"a,b\n1,2\n"
    batch_id = start_batch(key.client, write_lines(tmp_path / "tickets.jsonl", batch_lines(2)))
    wait_for(lambda: key.client.batches.retrieve(batch_id).status == "completed", "the batch ends")
    page.reload()
    expect(row(page, "tickets.jsonl")).to_be_visible()
    journey.screenshots("files")
    row(page, "batch_output").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("It holds the results of the batch “tickets.jsonl”")).to_be_visible()
    page.get_by_role("button", name="Keep as it is").click()
    row(page, "tickets.jsonl").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("It is the input of the batch “tickets.jsonl”.")).to_be_visible()
    journey.screenshots("files-delete")
    page.get_by_role("button", name="Delete it").click()
    expect(row(page, "tickets.jsonl")).to_have_count(0)
    page.get_by_label("Purpose").select_option("user_data")
    expect(page.get_by_role("row")).to_have_count(2)
    row(page, shown).get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No batch uses it.")).to_be_visible()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("No files for user_data")).to_be_visible()
