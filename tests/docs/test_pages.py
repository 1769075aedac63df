"""The blocks of each page do what the page shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.settings import ROOT
from tests.docs.blocks import Block, pages, read_blocks
from tests.docs.conftest import start_server
from tests.docs.kernel import PythonKernel
from tests.docs.page_run import PageRun

OWN_SERVER = ("docs/keys.md",)  # its first key is asked of every request from then on
RUN_LANGUAGES = ("sh", "console", "python", "sql")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]


def _is_run(block: Block) -> bool:
    return block.not_run is None and block.language in RUN_LANGUAGES


PAGES = [page for page in pages() if any(map(_is_run, read_blocks(page)))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_does_what_it_shows(
    page: Path, tmp_path: Path, python: PythonKernel, request: pytest.FixtureRequest
) -> None:
    is_alone = str(page.relative_to(ROOT)) in OWN_SERVER
    if is_alone:
        (tmp_path / "server").mkdir()
    server = start_server(tmp_path / "server") if is_alone else request.getfixturevalue("shared_server")
    folder = tmp_path / "reader"
    folder.mkdir()
    run = PageRun(page, folder, server, python)
    try:
        for block in filter(_is_run, read_blocks(page)):
            problem = run.run(block)
            assert not problem, f"{block.place}: {problem}"
    finally:
        run.close()
        if is_alone:
            server.close()
