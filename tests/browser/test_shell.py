"""The shell of the page: every view opens, also with the keyboard and on a narrow screen, and nothing leaves the server."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.journey import Journey
from tests.support.stack import StackProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

VIEWS = ("batches", "new", "playground", "models", "files", "usage", "webhooks", "keys")


def test_every_view_opens_from_the_navigation(fake_stack: StackProcess, open_journey: Callable[..., Journey]) -> None:
    journey = open_journey(fake_stack.url)
    page = journey.open("")
    for view in VIEWS:
        link = page.locator(f'nav a[href="#/{view}"]')
        link.click()
        expect(page).to_have_title(re.compile(f"^{link.inner_text()}.* · Millrace$"))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(link).to_have_attribute("aria-current", "page")
        journey.check_accessibility()


def test_a_narrow_screen_has_a_menu(fake_stack: StackProcess, open_journey: Callable[..., Journey]) -> None:
    journey = open_journey(fake_stack.url, width=390, dark=True)
    page = journey.open("")
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    expect(page.get_by_role("link", name="Playground")).to_be_hidden()
    journey.check_fits()


def test_an_address_without_a_view_leads_back(fake_stack: StackProcess, open_journey: Callable[..., Journey]) -> None:
    page = open_journey(fake_stack.url).open("#/nothing/here")
    page.get_by_role("link", name="Show the batches").click()
    expect(page.get_by_role("heading", name="Batches", level=1)).to_be_visible()
