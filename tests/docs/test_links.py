"""Links between the pages lead somewhere, and every page can be reached from the map of the manual."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.settings import ROOT
from tests.docs.blocks import pages

INDEX = ROOT / "docs" / "index.md"
PAGES = [*pages(), *(ROOT / "docs" / "decisions").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def _links(page: Path) -> list[str]:
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
    return re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "``", text))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
    anchors: set[str] = set()
    for heading in re.findall(r"(?m)^#+ (.+)$", text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{anchor}-{n}" if n else anchor) not in anchors)
        anchors.add(f"{anchor}-{number}" if number else anchor)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in _links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        if not target.exists() or (parts.fragment and parts.fragment not in _anchors(target)):
            wrong.append(link)
    assert not wrong


def test_every_page_can_be_reached_from_the_map_and_the_map_from_the_readme() -> None:
    seen, waiting = set(), [INDEX]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / urlsplit(link).path).resolve() for link in _links(page) if not urlsplit(link).scheme]
        waiting += [target for target in targets if target.suffix == ".md" and "docs" in target.parts]
    assert {str(page.relative_to(ROOT)) for page in set(pages()) - {ROOT / "README.md"} - seen} == set()
    assert "docs/index.md" in _links(ROOT / "README.md")
