"""An audit that could not be made is not one that found nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from core.settings import ROOT
from tools.audit import NotKnown, advisories

CLEAN: dict[str, Any] = {"name": "clean", "version": "1.0", "vulns": []}
BAD: dict[str, Any] = {"name": "bad", "version": "0.1", "vulns": [{"id": "CVE-1", "fix_versions": ["0.2"]}]}


def test_each_advisory_is_named_with_the_version_that_mends_it() -> None:
    assert advisories({"dependencies": [CLEAN, BAD]}) == ["bad 0.1: CVE-1, mended in 0.2"]
    open_one = {**BAD, "vulns": [{"id": "CVE-2", "fix_versions": []}]}
    assert advisories({"dependencies": [open_one]}) == ["bad 0.1: CVE-2, mended in no version yet"]


def test_a_package_nobody_could_say_anything_about_is_not_clean() -> None:
    with pytest.raises(NotKnown, match="unseen"):
        advisories({"dependencies": [CLEAN, {"name": "unseen", "skip_reason": "not found"}]})


def test_without_an_index_it_says_plainly_that_nothing_is_known() -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    nowhere |= {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tools.audit"],
        cwd=ROOT,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 2
    assert "Not audited: pip-audit could not be installed" in done.stderr
    assert "neither good nor bad" in done.stderr
