"""The rules of `docs/upgrading.md` for migrations, as checks of the SQL that one of them prints."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from alembic import command
from alembic.config import Config

from core.settings import ROOT

# Tables that grow with the work; all others have a handful of rows.
BIG = ("jobs", "batches", "shards", "files", "responses", "stored_chats", "webhook_deliveries", "usage_daily")
RAISES = "UPDATE schema_compatibility SET oldest_code"
_BIG = rf"(?:{'|'.join(BIG)})\b"
_CONSTANT = r"DEFAULT\s+(?:now\(\)|CURRENT_TIMESTAMP|'[^']*'|-?\d+|true|false|NULL)"

# What locks a table while all of its rows are read or written, with the way to do it instead.
_LONG_LOCKS = {
    rf"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY).* ON {_BIG}": "use postgresql_concurrently in an autocommit_block",
    rf"DROP INDEX (?!CONCURRENTLY).*\b(?:ix|uq)_{_BIG.removesuffix(chr(92) + 'b')}_": "use postgresql_concurrently",
    rf"ALTER TABLE {_BIG}.* ADD CONSTRAINT (?!.* USING INDEX)(?!.* NOT VALID)": "add it NOT VALID, then VALIDATE it",
    rf"ALTER TABLE {_BIG}.* TYPE ": "add another column, and copy it in chunks",
    rf"ALTER TABLE {_BIG}.* SET NOT NULL": "add a CHECK that is NOT VALID, then VALIDATE it",
    rf"ALTER TABLE {_BIG}.* ADD COLUMN .*(?:GENERATED|SERIAL)": "add a column without a value, and fill it in chunks",
    rf"(?:UPDATE|DELETE FROM) {_BIG}": "let the clerk do it in chunks while the service runs",
}
# What code of the schema before cannot live with.
_BREAKS = {
    r"ALTER TABLE .* DROP COLUMN": "older code reads the column",
    r"DROP TABLE (?!IF)": "older code reads the table",
    r"ALTER TABLE .* RENAME": "older code uses the old name",
    r"ALTER TABLE .* TYPE ": "older code uses the old type",
    r"ALTER TABLE .* SET NOT NULL": "older code may write NULL",
    r"ALTER TABLE .* ADD CONSTRAINT": "older code may write what it forbids",
    r"ALTER TABLE .* DROP DEFAULT": "older code relies on it",
}


def printed_sql(revision: str, down_revision: str | None) -> str:
    """Print what the upgrade to a revision does."""
    printed = io.StringIO()
    config = Config(output_buffer=printed)
    config.set_main_option("script_location", str(ROOT / "migrations"))
    command.upgrade(config, f"{down_revision}:{revision}" if down_revision else revision, sql=True)
    return printed.getvalue()


def broken_rules(sql: str) -> Iterator[str]:
    """Yield a sentence for each statement that breaks a rule."""
    statements = [" ".join(part.split()) for part in sql.split(";")]
    new = {match[1] for each in statements if (match := re.match(r"CREATE TABLE (\w+)", each))}
    raises = any(each.startswith(RAISES) for each in statements)
    for each in statements:
        if re.match(rf".* (?:ON|TABLE) (?:{'|'.join(new) or '-'})\b", each):
            continue  # a table that this migration creates is empty
        for pattern, advice in _LONG_LOCKS.items():
            if re.match(pattern, each):
                yield f"{each}: locks a table that may have millions of rows; {advice}"
        if match := re.match(r"ALTER TABLE .* ADD COLUMN (.*)", each):
            yield from _broken_column(each, match[1])
        for pattern, reason in _BREAKS.items():
            if not raises and re.match(pattern, each):
                yield f"{each}: {reason}, so `{RAISES} = …` belongs to it"


def _broken_column(statement: str, column: str) -> Iterator[str]:
    if "DEFAULT" in column and not re.search(_CONSTANT, column):
        yield f"{statement}: a default that is not constant writes every row; add the column first, then the default"
    if "NOT NULL" in column and "DEFAULT" not in column:
        yield f"{statement}: older code inserts rows without it; give it a default"
