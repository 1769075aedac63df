"""The preview of a mapping: the first prompts, the columns, the tokens and the time, while nothing is asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec

from cli.batches.text import error_text, estimate_text
from cli.client import Json
from cli.maps.batches import MapBatches
from cli.maps.mapping import Limits, Mapping, chunks
from cli.output import plural, printable
from mapping.join import PlanCounts

_SHOWN_ROWS: Final = 3
_SHOWN_ERRORS: Final = 3


def preview(mapping: Mapping, batches: MapBatches, limits: Limits) -> Json:
    """Plan all rows and validate the requests of the first batch; returns a report."""
    counts = PlanCounts()
    validation: Json | None = None
    for chunk in chunks(batches.requests(mapping, counts), limits):
        if validation is None:
            validation = batches.client.validate("map.jsonl", chunk.rewound(), mapping.mapper.endpoint)
    columns = [{"name": column.name, "type": str(column.type)} for column in mapping.mapper.added]
    return {
        "rows": counts.rows,
        "asked": counts.asked,
        "kept": counts.kept,
        "left_out": counts.left_out,
        "failed": counts.failed,
        "requests": counts.requests,
        "columns": columns,
        "sample": list(islice(_sample(mapping), _SHOWN_ROWS)),
        "validation": validation,
    }


def preview_lines(report: Json) -> Iterator[str]:
    """Yield a preview as lines of text."""
    for row in report["sample"]:
        yield f"Row {row['row']}"
        if row["problem"]:
            yield f"  cannot be asked: {row['problem']}"
        for role, text in _texts(row["body"] or {}):
            yield f"  {role:<9}  " + printable(text).replace("\n", f"\n  {'':<9}  ")
    shown = ", ".join(f"{column['name']} ({column['type']})" for column in report["columns"])
    yield f"New columns: {shown}"
    parts = {
        "with a request": report["asked"],
        "kept": report["kept"],
        "left out": report["left_out"],
        "unusable": report["failed"],
    }
    rows = ", ".join(f"{number:,} {word}" for word, number in parts.items() if number or word == "with a request")
    yield f"{plural(report['rows'], 'row')}: {rows}"
    is_less = report["requests"] < report["asked"]
    reason = "; equal rows share one, and answers of earlier commands are used again" if is_less else ""
    yield f"{plural(report['requests'], 'request')} to send{reason}"
    if (found := report["validation"]) is not None:
        yield from _validation_lines(found, report["requests"])


def _validation_lines(found: Json, num_requests: int) -> Iterator[str]:
    if (number := found["lines"]) < num_requests:
        yield f"Of the first {number:,} requests:"
    for error in found["errors"][:_SHOWN_ERRORS]:
        yield f"Would fail: {error_text(error)}"
    if found["lines_failing"]:
        yield f"{plural(found['lines_failing'], 'request')} would fail"
    for model in found["models"]:
        yield (
            f"{model['model']}: {model['prompt_tokens']:,} prompt tokens, answers of at most {model['max_output_tokens']:,}"
        )
    if found["estimate"] is not None:
        yield estimate_text(found["estimate"])


def _sample(mapping: Mapping) -> Iterator[Json]:
    """Yield the rows to ask, with the bodies of their requests."""
    for each in mapping.planned():
        if each.request is not None or each.problem is not None:
            body = None if each.request is None else msgspec.json.decode(each.request.body)
            custom_id = None if each.request is None else each.request.custom_id
            yield {"row": each.row.number, "custom_id": custom_id, "body": body, "problem": each.problem}


def _texts(body: dict[str, Any]) -> Iterator[tuple[str, str]]:  # Any: JSON
    if "input" in body:
        yield "text", body["input"]
    for message in body.get("messages", ()):
        yield message["role"], message["content"]
