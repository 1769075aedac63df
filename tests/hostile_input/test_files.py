"""B44 to B47, and B9, B60, B64 and B65 of files: malformed forms, paths as names, repeated and partial reads."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from tests.hostile_input.raw import exchange, request
from tests.hostile_input.target import MARK, Target
from tests.hostile_input.test_http import rss
from tests.support.check import check_problem

FORM = {"content-type": "multipart/form-data; boundary=x"}
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n'
END = b"--x--\r\n"


def text_field(name: bytes, value: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"


def named(filename: bytes) -> bytes:
    """Return a form with a file of this name, written verbatim."""
    return PURPOSE + b'--x\r\nContent-Disposition: form-data; name="file"; ' + filename + b"\r\n\r\nhello\r\n" + END


FORMS: dict[str, tuple[bytes, str, str | None]] = {
    "B44-nothing": (b"", "missing_required_parameter", "purpose"),
    "B44-no-file": (PURPOSE + END, "missing_required_parameter", "file"),
    "B44-file-without-a-name": (PURPOSE + text_field(b"file", b"x") + END, "missing_required_parameter", "file"),
    "B44-two-files": (PURPOSE + FILE + FILE + END, "invalid_multipart", None),
    "B44-10000-fields": (PURPOSE + text_field(b"a", b"b") * 10_000 + FILE + END, "invalid_multipart", None),
    "B44-2-MB-field": (PURPOSE + text_field(b"a", b"x" * (2 << 20)) + FILE + END, "invalid_multipart", None),
    "B44-2-MB-name": (text_field(b"a" * (2 << 20), b"x") + END, "invalid_multipart", None),
    "B44-endless-header": (b"--x\r\nX-A: " + b"y" * (8 << 20), "invalid_multipart", None),
    "B44-many-headers": (b"--x\r\n" + b"X-A: y\r\n" * 100_000 + b"\r\n\r\n" + END, "invalid_multipart", None),
    "B44-no-name": (b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "invalid_multipart", None),
    "B44-no-disposition": (b"--x\r\nX-A: b\r\n\r\nx\r\n" + END, "invalid_multipart", None),
    "B44-no-closing-boundary": (PURPOSE + FILE.removesuffix(b"\r\n"), "missing_required_parameter", "file"),
    "B44-cut-in-a-header": (PURPOSE + FILE[:30], "missing_required_parameter", "file"),
    "B44-preamble-of-8-MB": (b"y" * (8 << 20) + b"\r\n" + PURPOSE + FILE + END, "invalid_multipart", None),
    "B44-noise": (bytes(range(256)) * 100, "invalid_multipart", None),
    "B46-no-purpose": (FILE + END, "missing_required_parameter", "purpose"),
    "B46-unknown-purpose": (text_field(b"purpose", MARK.encode()) + FILE + END, "invalid_value", "purpose"),
    "B46-nul-in-the-purpose": (text_field(b"purpose", b"batch\0") + FILE + END, "invalid_value", "purpose"),
    "B46-bad-utf-8": (text_field(b"purpose", b"\xff\xfe") + FILE + END, "invalid_value", "purpose"),
    "B46-servers-purpose": (text_field(b"purpose", b"batch_output") + FILE + END, "invalid_value", "purpose"),
    "B46-purpose-as-a-file": (FILE.replace(b'"file"', b'"purpose"') + END, "invalid_value", "purpose"),
    "B46-no-anchor": (
        PURPOSE + text_field(b"expires_after[seconds]", b"3600") + FILE + END,
        "invalid_value",
        "expires_after[anchor]",
    ),
    "B46-other-anchor": (
        PURPOSE + text_field(b"expires_after[anchor]", b"now") + FILE + END,
        "invalid_value",
        "expires_after[anchor]",
    ),
    **{
        f"B46-seconds-{seconds.decode()}": (
            PURPOSE
            + text_field(b"expires_after[anchor]", b"created_at")
            + text_field(b"expires_after[seconds]", seconds)
            + FILE
            + END,
            "invalid_value",
            "expires_after[seconds]",
        )
        for seconds in (b"", b"0", b"-1", b"3599", b"2592001", b"1e4", b"3600.5", b"9" * 5000, b" 3600", b"0x1000")
    },
}


@pytest.mark.parametrize(("body", "code", "param"), FORMS.values(), ids=FORMS.keys())
def test_a_malformed_form_is_a_400(target: Target, body: bytes, code: str, param: str | None) -> None:
    before = rss(target)
    answer = target.http.post("/v1/files", content=body, headers=FORM)
    target.refused(answer, 400, code, param)
    assert rss(target) - before < 40 << 20
    if code == "invalid_multipart":
        target.refused(target.http.post("/v1/batches/validate", content=body, headers=FORM), 400, code)


KINDS = {
    "B44-no-boundary": "multipart/form-data",
    "B44-empty-boundary": "multipart/form-data; boundary=",
    "B44-other-boundary": "multipart/form-data; boundary=yy",
    "B44-long-boundary": "multipart/form-data; boundary=" + "x" * 5000,
    "B44-undefined-charset": "multipart/form-data; charset=undefined; boundary=x",
    "B44-idna-charset": "multipart/form-data; charset=idna; boundary=x",
    "B44-punycode-charset": "multipart/form-data; charset=punycode; boundary=x",
    "B44-zlib-charset": "multipart/form-data; charset=zlib; boundary=x",
    "B44-utf-7-charset": "multipart/form-data; charset=utf-7; boundary=x",
    "B44-unicode-escape-charset": "multipart/form-data; charset=unicode_escape; boundary=x",
    "B44-no-charset": "multipart/form-data; charset=" + "z" * 5000 + "; boundary=x",
    "B44-nul-charset": "multipart/form-data; charset*=utf-8''%00; boundary=x",
    "B9-urlencoded": "application/x-www-form-urlencoded",
    "B9-mixed": "multipart/mixed; boundary=x",
    "B9-json": "application/json",
    "B9-text": "text/plain",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_form_with_an_unusual_content_type_is_a_4xx_or_is_read(target: Target, kind: str) -> None:
    odd = text_field(b"purpose\\ud800", b"\xff\\ud800 \xe9 xn--\xff-")
    for body in (PURPOSE + FILE + END, odd + PURPOSE + FILE + END, odd * 20):
        for path in ("/v1/files", "/v1/batches/validate"):
            answer = target.http.post(path, content=body, headers={"content-type": kind})
            assert answer.status_code in (200, 400, 415), answer.text
            if answer.status_code == 200:
                assert answer.json()["filename"] == "a.txt"
            else:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


NAMES: dict[str, bytes] = {
    "B45-up": b'filename="../../../etc/passwd"',
    "B45-absolute": b'filename="/etc/passwd"',
    "B45-windows": b'filename="C:\\\\windows\\\\system32"',
    "B45-nul": b'filename="a\0b.txt"',
    "B45-10-kB": b'filename="' + b"n" * 10_000 + b'"',
    "B45-long-utf-8": b'filename="' + "é".encode() * 2000 + b'"',
    "B45-rtl": 'filename="invoice\u202etxt.exe"'.encode(),
    "B45-zero-width": 'filename="a\u200b\u2066b.txt"'.encode(),
    "B45-quotes": b'filename="a\\"; filename=\\"b"',
    "B45-star": b"filename*=UTF-8''%2e%2e%2f%0d%0aX-Evil%3a%201.txt",
    "B45-star-bad": b"filename*=UTF-8''%ff%fe%00",
    "B45-star-charset": b"filename*=undefined''a",
    "B45-both": b"filename=\"good.txt\"; filename*=UTF-8''..%2fevil",
    "B45-bad-utf-8": b'filename="\xff\xfe.txt"',
    "B45-surrogate": b'filename="\xed\xa0\x80.txt"',
    "B45-only-controls": b'filename="\x01\x02\x03"',
    "B45-dots": b'filename=".."',
    "B45-script": b'filename="<script>alert(1)</script>.html"',
    "B45-percent": b'filename="%0d%0aSet-Cookie: a=b"',
    "B45-emoji": 'filename="😀.txt"'.encode(),
    "B45-line-ends": 'filename="a\u2028b\u0085c"'.encode(),
}


@pytest.mark.parametrize("written", NAMES.values(), ids=NAMES.keys())
def test_a_file_name_is_plain_text(target: Target, written: bytes) -> None:
    answer = target.http.post("/v1/files", content=named(written), headers=FORM)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        return
    file = answer.json()
    assert 0 < len(file["filename"]) <= 255
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028\u2066-\u2069\ud800-\udfff]", file["filename"])
    content = target.http.get(f"/v1/files/{file['id']}/content")
    assert content.content == b"hello"
    header = content.headers["content-disposition"]
    match = re.fullmatch(r"""attachment; filename="([^"\\%/;]*)"; filename\*=UTF-8''([^";\r\n]*)""", header)
    assert match is not None, header
    assert unquote(match[2]) == file["filename"]
    assert "set-cookie" not in content.headers
    assert content.headers["x-content-type-options"] == "nosniff"
    stored = [path for path in target.process.state_dir.rglob("*") if "passwd" in path.name or "evil" in path.name]
    assert stored == []


def test_a_line_break_in_a_file_name_ends_its_header(target: Target) -> None:
    """B45: CRLF inside quotes is not part of a name."""
    answer = target.http.post("/v1/files", content=named(b'filename="a\r\nX-Evil: b.txt"'), headers=FORM)
    assert answer.status_code in (200, 400)
    assert "x-evil" not in answer.headers


def test_an_endless_preamble_or_epilogue_uses_no_memory(target: Target) -> None:
    """B44: 200 MB around a valid form."""
    before = rss(target)
    auth = f"Authorization: Bearer {target.owner.text}"
    head = request("POST", "/v1/files", auth, f"Content-Type: {FORM['content-type']}", "Transfer-Encoding: chunked")
    piece = b"%x\r\n" % (1 << 20) + b"y" * (1 << 20) + b"\r\n"
    form = PURPOSE + FILE + END
    whole = b"%x\r\n" % len(form) + form + b"\r\n"
    assert exchange(target.address, head, more=[piece] * 200 + [whole]).status in (400, 0)
    answer = exchange(target.address, head, whole, more=[*[piece] * 200, b"0\r\n\r\n"])
    assert answer.status in (200, 400)
    assert rss(target) - before < 40 << 20


def test_a_truncated_upload_is_not_stored(target: Target) -> None:
    """B44: the connection ends in the middle of it."""
    before = {file.id for file in target.client.files.list()}
    auth = f"Authorization: Bearer {target.owner.text}"
    head = request(
        "POST", "/v1/files", auth, f"Content-Type: {FORM['content-type']}", "Content-Length: 5000", length=False
    )
    from tests.hostile_input import raw

    with raw.connect(target.address) as connection:
        connection.sendall(head + PURPOSE + FILE[:-4])
    target.check_alive()
    assert {file.id for file in target.client.files.list()} == before


def test_a_file_in_use_is_deleted_once(target: Target) -> None:
    """B64: at once for the caller; a second delete is a 404."""
    file_id = target.upload(b"{}\n")
    target.start_batch(file_id)
    assert target.http.delete(f"/v1/files/{file_id}").status_code == 200
    check_problem(target.http.delete(f"/v1/files/{file_id}"), 404, None, "file_id")
    check_problem(target.http.get(f"/v1/files/{file_id}/content"), 404, None, "file_id")


def test_a_head_request_for_content_has_no_body(target: Target) -> None:
    """B65: HEAD returns the headers of GET."""
    file_id = target.upload(b"0123456789", "a.txt", "user_data")
    url = f"/v1/files/{file_id}/content"
    whole, head = target.http.get(url), target.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-disposition", "accept-ranges", "last-modified"):
        assert head.headers[name] == whole.headers[name]
    part = target.http.head(url, headers={"range": "bytes=2-3"})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 2-3/10")
    assert target.http.head("/v1/files/file-unknown/content").status_code == 404


def test_a_batch_has_no_content_before_it_has_a_file(target: Target) -> None:
    """B65: its ids are null until then, and `null` is no id."""
    batch = target.client.batches.retrieve(target.start_batch(target.upload(b"{}\n")))
    assert batch.output_file_id is None
    check_problem(target.http.get(f"/v1/files/{batch.id}/content"), 404, None, "file_id")


def test_a_form_from_another_origin_has_no_effect(target: Target) -> None:
    """B9: a form of another site has no key, and a browser sends its origin."""
    with target.guarded.http(None) as http:
        answer: httpx2.Response = http.post("/v1/files", content=PURPOSE + FILE + END, headers=FORM)
    target.refused(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/uploads"])
def test_an_upload_in_parts_is_as_strict(target: Target, path: str) -> None:
    """B45 and B46: the same rules for names and sizes."""
    good: dict[str, Any] = {"purpose": "batch", "filename": "a.jsonl", "bytes": 10, "mime_type": "text/jsonl"}
    for name, value, code in (
        ("bytes", 0, "invalid_value"),
        ("bytes", -1, "invalid_value"),
        ("bytes", 1.5, "invalid_type"),
        ("bytes", True, "invalid_type"),
        ("filename", "", "invalid_value"),
        ("filename", "n" * 10_001, "invalid_value"),
        ("mime_type", "a\r\nb", "invalid_value"),
        ("purpose", MARK, "invalid_value"),
        ("expires_after", {"anchor": "created_at", "seconds": 1}, "invalid_value"),
    ):
        answer = target.http.post(path, json={**good, name: value})
        target.refused(answer, 400, code, "expires_after.seconds" if name == "expires_after" else name)
    odd = target.http.post(path, json={**good, "filename": "../\u202e\n\x01a.jsonl"})
    assert odd.json()["filename"] == "a.jsonl"
