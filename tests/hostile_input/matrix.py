"""The tests that prove each row of the matrix of bad input: `python -m tests.hostile_input.matrix` prints the table.

A row is proved here by tests with ids or docstrings that begin with it, and elsewhere by those in `ELSEWHERE`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

ROWS: Final = tuple(f"B{number}" for number in range(1, 68))
FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parent.parent
_STRUCTURED: Final = "tests/unit/engine/structured/"

ELSEWHERE: Final = {
    "B1": ("tests/service/api/access/test_keys.py::test_a_revoked_and_an_expired_key_are_refused_like_an_unknown_one",),
    "B2": (
        "tests/service/api/access/test_keys.py::test_a_key_in_the_query_is_not_looked_at",
        "tests/service/api/access/test_keys.py::test_no_key_is_in_any_log",
    ),
    "B4": ("tests/service/api/access/test_keys.py::test_a_scope_opens_its_routes_and_no_others",),
    "B5": ("tests/service/api/access/test_isolation.py::test_an_id_of_another_tenant_is_an_unknown_id",),
    "B14": ("tests/unit/core/test_strict_json.py::test_values_that_json_or_the_database_cannot_hold_are_refused",),
    "B26": (
        "tests/unit/engine/inputs/test_chat_template.py::test_no_text_of_a_request_becomes_a_control_token",
        "tests/service/api/generation/test_completions_of_a_model.py::test_the_spelling_of_a_special_token_is_text_in_a_completion",
    ),
    "B36": (_STRUCTURED + "test_grammar_limits.py::test_a_harmful_constraint_is_rejected_and_the_next_one_compiles",),
    "B37": (_STRUCTURED + "test_constrained_output.py::test_a_constraint_that_nothing_matches_fails_alone",),
    "B42": (
        "tests/service/api/files/test_idempotency.py::test_the_same_create_sent_twice_makes_one_object",
        "tests/service/api/files/test_idempotency.py::test_a_key_with_another_body_is_refused_for_good",
    ),
    "B48": ("tests/service/api/files/test_files.py::test_files_over_the_limits_are_refused",),
    "B61": ("tests/service/api/access/test_rate_limits.py::test_a_tenant_has_no_more_batches_and_lines_waiting_than_its_caps",),
    "B62": ("tests/service/api/access/test_isolation.py::test_a_list_holds_nothing_of_others_wherever_it_starts",),
    "B64": ("tests/service/workers/batches/test_clerk.py::test_a_deleted_file_keeps_its_bytes_until_its_batch_has_ended",),
    "B65": ("tests/service/api/files/test_files.py::test_a_range_of_the_content_is_sent_alone",),
    "B66": (
        "tests/unit/engine/outputs/test_detokenizer.py::test_any_bytes_become_the_text_python_would_make_of_them",
        "tests/unit/engine/outputs/test_detokenizer.py::test_half_a_character_is_never_shown",
    ),
    "B67": (
        "tests/service/api/test_webhooks.py::test_an_address_that_may_not_be_reached_is_refused_at_once",
        "tests/unit/core/test_url_guard.py",
        "tests/service/workers/maintenance/test_webhook_delivery.py",
    ),
}  # fmt: skip

_TEST: Final = re.compile(r"^def (test_\w+)\(.*?(?=^def |^@pytest|\Z)", re.DOTALL | re.MULTILINE)
_ROW: Final = re.compile(r"\bB([0-9]{1,2})\b")


def proved_here() -> dict[str, list[str]]:
    """Return for each row the files with ids that name it, and the tests with docstrings that do."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(FOLDER.glob("test_*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        for row in _named(re.findall(r'["\[]B[0-9]{1,2}-', text)):
            found[row].append(f"{name} [{row}-…]")
        for test in _TEST.finditer(text):
            for line in re.findall(r'"""(.*)', test[0]):
                for row in _named([line.partition(":")[0]]):
                    found[row].append(f"{name}::{test[1]}")
    return found


def _named(texts: list[str]) -> list[str]:
    """Return the rows in these texts; `B36 to B38` is three rows."""
    rows = set()
    for text in texts:
        numbers = [int(number) for number in _ROW.findall(text)]
        if " to " in text and len(numbers) == 2:
            numbers = list(range(numbers[0], numbers[1] + 1))
        rows.update(f"B{number}" for number in numbers)
    return sorted(rows)


def table() -> str:
    """Return one line for each row, with its tests."""
    here = proved_here()
    return "\n".join(f"{row}\t{', '.join([*here[row], *ELSEWHERE.get(row, ())])}" for row in ROWS)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
