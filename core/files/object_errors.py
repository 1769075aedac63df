"""Sentences about object storage that cannot be used, from the errors of obstore. No key and no token is repeated."""

from __future__ import annotations

import re
from typing import Final

from core.files.file_store import FileStoreUnavailable

_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINT: Final = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "the network of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
}
_NO_BUCKET: Final = re.compile(r"NoSuchBucket|ContainerNotFound|ContainerBeingDeleted|bucket does not exist")
_METADATA: Final = re.compile(r"169\.254\.|metadata\.google|fd00:ec2|[Tt]oken request|credential process")
_CODE: Final = re.compile(r"<Code>(\w{1,64})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z]*)*)")
_REFUSED: Final = re.compile(r"status code: 40[13]|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken")
_NOT_BUILT: Final = re.compile(r"service account|credential|[Aa]ccess [Kk]ey|Account must be specified|Missing|region")
_DEBUG: Final = "\n\nDebug source"
_TRANSPORT: Final = re.compile(r"HTTP error: (.{1,80})")


def is_missing_bucket(error: Exception) -> bool:
    """Is the bucket missing, and not only an object in it?"""
    return _NO_BUCKET.search(str(error)) is not None


def unavailable_store(place: str, error: Exception) -> FileStoreUnavailable:
    """Return the failure of a call, with its remedy. `place` is the URL of the store."""
    text = str(error).partition(_DEBUG)[0]
    scheme = place.partition("://")[0]
    credentials = _CREDENTIALS[scheme]
    code = _CODE.search(text)
    status = _STATUS.search(text)
    name = code[1] if code else status[1] if status else ""
    if is_missing_bucket(error):
        reason, advice = "the bucket does not exist", "Create it, or correct MILLRACE_FILES_URL."
    elif _METADATA.search(text):
        reason, advice = "there are no credentials", f"Set {credentials} for the api and the clerk."
    elif _REFUSED.search(text):
        reason = f"it refuses the credentials ({name})"
        advice = f"Correct {credentials}, or allow them to read, write, list and delete there."
    elif name:
        reason, advice = f"it answers {name}", "If it does not pass by itself, look at the state of the storage."
    elif transport := _TRANSPORT.search(text):
        reason = f"it does not answer ({transport[1].strip()})"
        advice = f"Start it, or correct {_ENDPOINT[scheme]}."
    elif _NOT_BUILT.search(text):
        reason, advice = _last_part(text), f"Correct {credentials}."
    else:
        reason, advice = _last_part(text), f"Look at {_ENDPOINT[scheme]} and at {credentials}."
    return FileStoreUnavailable(place, reason, advice)


def _last_part(text: str) -> str:
    """The cause in an error of obstore, such as `Generic S3 error: CAUSE`."""
    first = text.strip().splitlines()[0] if text.strip() else "unknown reason"
    cause = re.sub(r"^Generic \w+ error: |(?<=Invalid Access Key): .*", "", first).rstrip(".")[:200]
    return cause[:1].lower() + cause[1:]
