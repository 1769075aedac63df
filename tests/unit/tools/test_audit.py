"""The audit: a failed audit is not a clean one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from core.settings import ROOT
from tools.audit import AuditFailed, advisories

CLEAN: dict[str, Any] = {"name": "clean", "version": "1.0", "vulns": []}
BAD: dict[str, Any] = {"name": "bad", "version": "0.1", "vulns": [{"id": "CVE-1", "fix_versions": ["0.2"]}]}


def test_each_advisory_is_listed_with_the_version_that_fixes_it() -> None:
    assert advisories({"dependencies": [CLEAN, BAD]}) == ["bad 0.1: CVE-1, fixed in 0.2"]
    open_one = {**BAD, "vulns": [{"id": "CVE-2", "fix_versions": []}]}
    assert advisories({"dependencies": [open_one]}) == ["bad 0.1: CVE-2, fixed in no version yet"]


def test_a_package_that_was_not_looked_up_is_not_clean() -> None:
    with pytest.raises(AuditFailed, match="unseen"):
        advisories({"dependencies": [CLEAN, {"name": "unseen", "skip_reason": "not found"}]})


def test_without_an_index_the_audit_fails() -> None:
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
    assert "may or may not have advisories" in done.stderr
