"""Downloads against a local server: the good file, and each way in which a server can fail."""

import hashlib
import os
import re
import time

import pytest

from score_sde.data.download import RemoteFile, download, verify
from score_sde.errors import UserError

BODY = os.urandom(200_000)
PATIENCE = 0.4  # seconds; the official 20 would be slow to wait for


def remote(url, body=BODY):
    return RemoteFile(url, len(body), hashlib.sha256(body).hexdigest())


def answer(body, length=None, then=None):
    def behave(handler):
        handler.send_response(200)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        if then:
            then()

    return behave


def drip(handler):
    """One byte now and then: each is in time, all of them would take an hour."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    for k in range(len(BODY)):
        handler.wfile.write(BODY[k : k + 1])
        handler.wfile.flush()
        time.sleep(PATIENCE / 10)


def test_good_file_arrives_whole_in_a_folder_that_is_made(server, tmp_path):
    target = tmp_path / "new" / "deep" / "file.bin"
    download(remote(server.serve("file.bin", answer(BODY))), target, patience=PATIENCE)
    assert target.read_bytes() == BODY
    assert os.listdir(target.parent) == ["file.bin"]  # nothing of the temporary name is left


def test_good_file_of_unannounced_length_and_by_redirect(server, tmp_path):
    plain = server.serve("plain", answer(BODY, length=-1))

    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", plain)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    download(remote(server.serve("moved", redirect)), tmp_path / "file", patience=PATIENCE)
    assert (tmp_path / "file").read_bytes() == BODY


def test_existing_target_is_replaced_only_by_a_good_file(server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    wrong = server.serve("wrong", answer(BODY[::-1]))
    with pytest.raises(UserError, match="wrong checksum"):
        download(remote(wrong), target, patience=PATIENCE)
    assert target.read_bytes() == b"old"
    download(remote(server.serve("right", answer(BODY))), target, patience=PATIENCE)
    assert target.read_bytes() == BODY


FAILURES = {
    "missing": (None, "HTTP 404 Not Found"),
    "wrong content": (answer(BODY[::-1]), "wrong checksum: SHA-256 [0-9a-f]{64}, expected"),
    "announces less": (answer(BODY[:-1]), "the server offers 199999 bytes, the file has 200000"),
    "ends early": (answer(BODY[:-9], length=len(BODY)), "ended at byte 199991 of 200000"),
    "ends early, unannounced": (answer(BODY[:-9], length=-1), "ended at byte 199991 of 200000"),
    "never ends": (answer(BODY + b"more", length=-1), "more than the file's 200000 bytes came"),
    "drips": (drip, r"stalled at byte \d+ of 200000 \(less than 1 MiB in 0.4 s\)"),
    "speaks no HTTP": (lambda handler: handler.wfile.write(b"SMTP\r\n\r\n"), "SMTP"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_one_line_and_leaves_nothing(case, server, tmp_path):
    behaviour, message = FAILURES[case]
    url = server.serve("file", behaviour) if behaviour else server.url("file")
    with pytest.raises(UserError) as caught:
        download(remote(url), tmp_path / "file", patience=PATIENCE)
    line = str(caught.value)
    assert line.startswith(f"{url}: ") and re.search(message, line) and "\n" not in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("body", [b"", BODY[:1000]], ids=["at once", "midway"])
def test_stall_is_left_in_time(body, server, tmp_path):
    stall = answer(body, length=len(BODY), then=lambda: server.closing.wait(60))
    url = server.serve("file", stall)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"stalled at byte {len(body)} of 200000"):
        download(remote(url), tmp_path / "file", patience=PATIENCE)
    # The socket waits PATIENCE at most after the last packet; the rest of the room is for a slow
    # machine, and far from the 60 s that the server would wait.
    assert time.monotonic() - start < 10
    assert os.listdir(tmp_path) == []


def test_server_that_never_answers_is_left_in_time(server, tmp_path):
    url = server.serve("file", lambda handler: server.closing.wait(60))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in"):
        download(remote(url), tmp_path / "file", patience=PATIENCE)
    assert time.monotonic() - start < 10


def test_headers_that_drip_do_not_extend_the_patience(server, tmp_path):
    def behave(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):  # each in time for a socket's own timeout, 8 s together
            handler.wfile.write(b"X: y\r\n")
            handler.wfile.flush()
            if server.closing.wait(PATIENCE / 10):
                return

    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in 0.4 s"):
        download(remote(server.serve("file", behave)), tmp_path / "file", patience=PATIENCE)
    assert time.monotonic() - start < 4


def test_refused_connection(tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/file: Connection refused"):
        download(remote("http://127.0.0.1:9/file"), tmp_path / "file", patience=PATIENCE)


def test_a_proxy_set_between_two_downloads_is_used(server, tmp_path, monkeypatch):
    download(remote(server.serve("file", answer(BODY))), tmp_path / "direct")
    elsewhere = "http://elsewhere.invalid/file"
    server.behaviours[elsewhere] = answer(BODY)  # as a proxy is asked
    monkeypatch.setenv("http_proxy", server.address)
    download(remote(elsewhere), tmp_path / "by proxy")
    assert server.asked == ["/file", elsewhere]


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    url = server.serve("file", answer(BODY))
    with pytest.raises(UserError, match=r"below: cannot be written \(File exists\)"):
        download(remote(url), tmp_path / "file" / "below", patience=PATIENCE)


def test_verify(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BODY)
    verify(path, remote("http://x/file"))
    path.write_bytes(BODY[:-1])
    with pytest.raises(UserError, match=f"{path} has 199999 bytes, not the 200000"):
        verify(path, remote("http://x/file"))
    path.write_bytes(BODY[::-1])
    with pytest.raises(UserError, match="has SHA-256"):
        verify(path, remote("http://x/file"))
