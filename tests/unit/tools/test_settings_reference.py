"""`docs/settings.md` is made from the settings."""

from __future__ import annotations

from core.settings import Settings
from tools.settings_reference import PAGE, page


def test_the_page_is_that_of_these_settings() -> None:
    assert page() == PAGE.read_text(), "run `python -m tools.settings_reference`, which writes docs/settings.md"
    assert all(f"{name.upper()}` | " in page() for name in Settings.model_fields)
