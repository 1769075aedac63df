"""Every error code that a line, a file or a request can get, with its meaning and its remedy.

The report of a batch and the page show them, and `docs/errors.md` has them as a table: `python -m core.error_codes` prints it.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple


class ErrorHelp(NamedTuple):
    """An error code in plain words: the cause, and the next step."""

    meaning: str
    remedy: str


_AGAIN: Final = "Retry these lines. If they fail again, ask the operator to look at the log of the engine."
_SERVER: Final = "Ask the operator of this server; `millrace doctor` names the cause. Then retry."

LINES: Final[dict[str, ErrorHelp]] = {
    "batch_cancelled": ErrorHelp(
        "The batch was cancelled before this line ran.", "Retry the batch to run the lines that have no answer."
    ),
    "batch_expired": ErrorHelp(
        "The window of the batch was over before this line ran.",
        "Retry the batch to run the lines that have no answer, with a longer window or a higher priority.",
    ),
    "cancelled": ErrorHelp("The request was cancelled.", "Send it again if its answer is still wanted."),
    "constraint_error": ErrorHelp(
        "The answer could not be held to its schema, grammar or tool.",
        "Simplify the schema, or retry: another seed may give another answer.",
    ),
    "context_length_exceeded": ErrorHelp(
        "The prompt, or the prompt and 'max_tokens', do not fit into the context of the model.",
        "Shorten the prompt, lower 'max_tokens', or use a model with a larger context.",
    ),
    "engine_crash": ErrorHelp("The engine stopped while it ran this request.", _AGAIN),
    "engine_error": ErrorHelp("The engine could not run this request.", _AGAIN),
    "incomplete_output": ErrorHelp(
        "The answer reached its token limit before its structure, or its tool call, was complete.",
        "Raise 'max_tokens', or make the answer that is asked for shorter.",
    ),
    "invalid_schema": ErrorHelp(
        "The schema or grammar of the answer cannot be parsed, is not supported, or is too large.",
        "Correct the part that the message names.",
    ),
    "invalid_type": ErrorHelp(
        "A field has a value of the wrong type, such as a text instead of a number.",
        "Correct the field that the message names.",
    ),
    "invalid_prompt": ErrorHelp(
        "The input of a response cannot be used.", "Correct the part of the input that the message names."
    ),
    "invalid_value": ErrorHelp("A field has a value that is not allowed.", "Correct the field that the message names."),
    "missing_required_parameter": ErrorHelp("A required field is absent.", "Add the field that the message names."),
    "model_not_found": ErrorHelp(
        "No model of this name is served.", "Use one of the names of `GET /v1/models`, or ask the operator to add it."
    ),
    "model_not_ready": ErrorHelp("The model is served, but does not answer now.", _SERVER),
    "request_failed": ErrorHelp("The line failed without a known code.", _AGAIN),
    "server_error": ErrorHelp("The server failed to answer.", _SERVER),
    "template_error": ErrorHelp(
        "The chat template of the model does not accept these messages.",
        "Change the order or the roles of the messages as the message asks.",
    ),
    "unknown_parameter": ErrorHelp(
        "A field does not exist.", "Remove the field that the message names, or correct its spelling."
    ),
    "unsupported_parameter": ErrorHelp(
        "A field asks for a feature that this model or this server does not have.",
        "Remove the field, or use the alternative that the message names.",
    ),
    "upstream_account": ErrorHelp(
        "The server that runs this model wants a payment of the operator.", "Ask the operator of this server."
    ),
    "upstream_error": ErrorHelp(
        "The server that runs this model failed, or refused the request.",
        "Correct what the message names. If it names nothing, retry these lines.",
    ),
    "upstream_not_found": ErrorHelp(
        "The server that runs this model does not have it, or lacks this endpoint.", _SERVER
    ),
    "upstream_timeout": ErrorHelp(
        "The server that runs this model did not answer in time.",
        "Retry these lines, with shorter answers if it lasts.",
    ),
    "upstream_unauthorized": ErrorHelp("The server that runs this model refused the key of this service.", _SERVER),
    "upstream_unavailable": ErrorHelp("No server of this model answers.", _SERVER),
    "worker_lost": ErrorHelp("The workers that ran this request were lost.", _AGAIN),
}

FILES: Final[dict[str, ErrorHelp]] = {
    "duplicate_custom_id": ErrorHelp("Two lines have the same custom_id.", "Give every line a custom_id of its own."),
    "empty_file": ErrorHelp("The file has no lines.", "Upload a file with at least one request."),
    "invalid_file_format": ErrorHelp(
        "The file is not JSON Lines in UTF-8.",
        "Convert it as the message says; `millrace map` makes batches of CSV, Parquet and Excel files.",
    ),
    "invalid_json": ErrorHelp("The JSON cannot be read.", "Correct it at the place that the message names."),
    "invalid_json_line": ErrorHelp(
        "A line is not a JSON object with custom_id, method, url and body.",
        "Write each request as one line of JSON, and correct the place that the message names.",
    ),
    "invalid_request": ErrorHelp(
        "A line, or the file, cannot be used in a batch.", "Change what the message names; upload a deleted file again."
    ),
    "line_limit_exceeded": ErrorHelp(
        "Too many lines wait in your batches.", "Wait until some batches have ended, then send this one again."
    ),
    "line_too_long": ErrorHelp("A line has more bytes than this server takes.", "Shorten the line."),
    "token_limit_exceeded": ErrorHelp(
        "Too many tokens wait in the batches of your key.",
        "Wait until some batches have ended, then send this one again.",
    ),
    "too_many_errors": ErrorHelp(
        "More lines are wrong than are listed.", "Correct those that are listed, and validate the file again."
    ),
    "too_many_tasks": ErrorHelp("The file has more lines or inputs than a batch may have.", "Split the file."),
    "url_mismatch": ErrorHelp(
        "The url of a line is not the endpoint of its batch.",
        "Use one url for all lines, and create the batch with it as endpoint.",
    ),
}

REQUESTS: Final[dict[str, ErrorHelp]] = {
    "api_key_revoked": ErrorHelp("The API key is revoked, so it cannot be changed.", "Create a new key."),
    "batch_not_cancellable": ErrorHelp("The batch has ended.", "Nothing has to be cancelled."),
    "batch_not_changeable": ErrorHelp(
        "The batch is too far for another priority or window.", "Change them before its lines have ended."
    ),
    "batch_not_ended": ErrorHelp("The batch has not ended.", "Wait until it has ended, or cancel it first."),
    "batch_not_pausable": ErrorHelp(
        "The batch takes no more lines, so it cannot be paused or resumed.", "Wait until it has ended, or cancel it."
    ),
    "bytes_mismatch": ErrorHelp(
        "The parts of an upload have another size than it was created with.", "Add the missing parts, or begin again."
    ),
    "client_disconnected": ErrorHelp("The body of the request was cut off.", "Send the request again."),
    "disk_full": ErrorHelp("The disk of the server has no room.", "Delete files, or ask the operator for more room."),
    "file_too_large": ErrorHelp("The file is larger than this server takes.", "Split the file."),
    "idempotency_key_in_use": ErrorHelp(
        "The first request with this Idempotency-Key still runs.", "Send it again shortly."
    ),
    "idempotency_key_reused": ErrorHelp(
        "The Idempotency-Key was used for another request.", "Use a new key for a new request."
    ),
    "insufficient_permissions": ErrorHelp(
        "The API key may not do this.", "Use a key with the scope, or for the model, that the message names."
    ),
    "insufficient_quota": ErrorHelp(
        "The files of your tenant fill its quota.", "Delete files, or ask the operator for more."
    ),
    "invalid_api_key": ErrorHelp(
        "The API key is absent, wrong, revoked or expired.",
        "Send a valid key in the header Authorization, as `Bearer sk-…`.",
    ),
    "invalid_file_purpose": ErrorHelp(
        "The file was uploaded for another purpose.", "Upload it again with the purpose that the message names."
    ),
    "invalid_http": ErrorHelp("The request is not valid HTTP.", "Use an HTTP client, and look at what it sends."),
    "invalid_mapping": ErrorHelp("The mapping of a table cannot be used.", "Correct the field that the message names."),
    "invalid_multipart": ErrorHelp("The form cannot be read.", "Send it as multipart/form-data with its boundary."),
    "invalid_table": ErrorHelp(
        "The file cannot be read as a table.",
        "Send CSV, TSV, JSON Lines, Parquet or XLSX; the message says what it is.",
    ),
    "md5_mismatch": ErrorHelp("The upload has another MD5 than was stated.", "Upload the file again."),
    "method_not_allowed": ErrorHelp("The path exists, but not with this method.", "Use a method that Allow names."),
    "model_pinned": ErrorHelp(
        "The model is pinned, so it is not unloaded.",
        "Unpin it first: in its file, or with `POST /v1/models/NAME/unpin`.",
    ),
    "model_too_large": ErrorHelp(
        "The model does not fit into the memory of any device.",
        "Use a smaller quantization, context or number of slots.",
    ),
    "not_local": ErrorHelp(
        "Without keys, this server only answers this machine.",
        "Create a key with `millrace keys create`, and send it.",
    ),
    "nothing_to_ask": ErrorHelp(
        "No row of the table becomes a request.", "Change `where`, or the columns that the prompt uses."
    ),
    "nothing_to_retry": ErrorHelp("Every line of the batch has an answer.", "Name the lines that are to run again."),
    "previous_response_not_completed": ErrorHelp(
        "The previous response has no answer to go on from.", "Wait until it has ended, or begin without it."
    ),
    "previous_response_not_found": ErrorHelp(
        "The previous response does not exist.", "Begin without it, or send its input again."
    ),
    "range_not_satisfiable": ErrorHelp("The range lies outside the file.", "Ask for a range within its bytes."),
    "rate_limit_exceeded": ErrorHelp(
        "Too many requests, tokens or batches in a short time.", "Send it again after the time in Retry-After."
    ),
    "request_headers_too_large": ErrorHelp("The headers are too large.", "Send fewer or shorter headers."),
    "request_timeout": ErrorHelp(
        "The body, or the answer, took too long for a request that waits.",
        "Use a stream, a batch, or `POST /v1/jobs` for long answers.",
    ),
    "request_too_large": ErrorHelp("The body is larger than this server takes.", "Upload it as a file, or shorten it."),
    "response_deleted": ErrorHelp("The response was deleted while it was read.", "Create it again."),
    "response_not_cancellable": ErrorHelp(
        "Only a response in the background that has not ended can be cancelled.", "Nothing has to be cancelled."
    ),
    "service_unavailable": ErrorHelp("A part of the service does not answer.", "Send it again shortly."),
    "stream_interrupted": ErrorHelp("Part of the stream was lost.", "Read the whole answer of the job, or send again."),
    "table_deleted": ErrorHelp(
        "The table that the batch was mapped from was deleted.", "Read the answers from `GET /v1/batches/{id}/output`."
    ),
    "table_failed": ErrorHelp(
        "The server failed to read the table.", "Ask the operator of this server for the reason in its log."
    ),
    "table_too_large": ErrorHelp(
        "The table or its template needs more time, memory or bytes than this server gives.",
        "Use fewer rows or a simpler template, or `millrace map`, which runs on your machine.",
    ),
    "too_many_api_keys": ErrorHelp("The tenant has as many keys as it may.", "Revoke keys that are not used."),
    "too_many_webhook_endpoints": ErrorHelp("The tenant has as many webhooks as it may.", "Delete one first."),
    "unknown_url": ErrorHelp("There is no such path.", "Use the path that the message names; `/docs` lists all."),
    "unsupported_media_type": ErrorHelp(
        "The body has another content type than this path takes.", "Send the content type that the message names."
    ),
    "upload_not_pending": ErrorHelp("The upload has ended.", "Begin a new upload."),
    "validation_failed": ErrorHelp("The validation of a file stopped.", "Send it again; then ask the operator."),
    "webhook_delivery_failed": ErrorHelp(
        "The receiver did not answer a test.", "Correct the address, or start its receiver."
    ),
    "webhooks_disabled": ErrorHelp(
        "Webhooks are off on this server.", "Ask the operator to name the hosts in `MILLRACE_WEBHOOK_HOSTS`."
    ),
}

ERROR_CODES: Final[dict[str, ErrorHelp]] = LINES | FILES | REQUESTS
_TABLES: Final = {"Lines and requests": LINES, "Files of a batch": FILES, "Requests": REQUESTS}
_UNKNOWN: Final = "Correct what the message names. If it names nothing, retry these lines."


def remedy(code: str | None) -> str:
    """Return the next step for a code; servers upstream have codes of their own."""
    found = ERROR_CODES.get(code or "")
    return found.remedy if found else _UNKNOWN


def tables() -> str:
    """Format the tables of `docs/errors.md`."""
    text = ""
    for title, codes in _TABLES.items():
        rows = "".join(f"| `{code}` | {meaning} | {step} |\n" for code, (meaning, step) in sorted(codes.items()))
        text += f"\n## {title}\n\n| code | meaning | what to do |\n|---|---|---|\n{rows}"
    return text


if __name__ == "__main__":
    sys.stdout.write(tables())
