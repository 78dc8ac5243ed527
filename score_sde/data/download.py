"""One file over HTTP: bounded in time and size, checked, and complete or not there at all."""

import contextlib
import hashlib
import http.client
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from score_sde.errors import UserError
from score_sde.progress import bar

PATIENCE = 20.0  # seconds
_PROGRESS = 1 << 20  # bytes; fewer in `patience` seconds count as a stall
_CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A published file: address, size in bytes and SHA-256 (hexadecimal)."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rsplit("/", 1)[-1]


def download(remote: RemoteFile, target: Path, *, patience: float = PATIENCE) -> None:
    """Writes `remote` to `target`, with a progress bar where standard error is a terminal.

    Gives up when nothing has answered after `patience` seconds (names, addresses, redirects and TLS
    together), or when less than 1 MiB came in `patience` seconds: a server that stalls or drips is
    left after 20 s, and the whole is bounded by (size / 1 MiB + 2) * patience. Proxies are taken
    from the environment (`https_proxy`, `http_proxy`, `no_proxy`). The bytes go to a hidden
    `.part` file beside `target`, which takes its name only once size and SHA-256 are right; on any
    failure it is removed.

    Raises:
      UserError: one line that names the address and what went wrong, or the file that could not be
        written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with contextlib.closing(_connect(remote.url, patience)) as answer:
        announced = answer.headers.get("Content-Length", str(remote.size))
        if announced != str(remote.size):
            raise UserError(
                f"{remote.url}: the server offers {announced} bytes, the file has {remote.size}"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = _receive(answer, part, remote, patience)
            if digest != remote.sha256:
                raise UserError(
                    f"{remote.url}: wrong checksum: SHA-256 {digest}, expected {remote.sha256}"
                )
            os.replace(part, target)
        except OSError as error:  # of the disk: _receive has dealt with those of the network
            raise UserError(f"{target}: cannot be written ({_reason(error)})") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def verify(path: Path, remote: RemoteFile) -> None:
    """Checks that the local file `path` is `remote`; raises UserError where it is not."""
    size = path.stat().st_size
    if size != remote.size:
        raise UserError(
            f"config.data.dir: {path} has {size} bytes, not the {remote.size} of the official "
            "file: it is damaged or incomplete"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != remote.sha256:
        raise UserError(
            f"config.data.dir: {path} has SHA-256 {digest}, not the official {remote.sha256}: "
            "it is damaged"
        )


def _connect(url: str, patience: float) -> http.client.HTTPResponse:
    """Opens `url`, waiting at most `patience` seconds for the answer's headers.

    In a thread, because a socket's timeout bounds neither the look-up of the name, nor several
    addresses tried in turn, nor headers that arrive byte by byte.
    """
    outcome: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    import urllib.request  # not before it is needed: importing it takes as long as numpy

    # Some servers refuse the standard library's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "score-sde"})

    def connect() -> None:
        try:
            # `urlopen` would keep the proxies of the process's first download.
            outcome.put(urllib.request.build_opener().open(request, timeout=patience))
        except (OSError, http.client.HTTPException) as error:
            outcome.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = outcome.get(timeout=patience)
    except queue.Empty:
        raise UserError(f"{url}: no answer in {patience:g} s") from None
    if isinstance(answer, Exception):
        raise UserError(f"{url}: {_reason(answer)}") from answer
    return answer


def _receive(
    answer: http.client.HTTPResponse, part: Path, remote: RemoteFile, patience: float
) -> str:
    """Writes exactly `remote.size` bytes of `answer` to `part`; returns their SHA-256."""
    digest = hashlib.sha256()
    received = marked = 0
    deadline = time.monotonic() + patience
    sizes = {"total": remote.size, "unit": "B", "unit_scale": True}
    with part.open("wb") as file, bar(desc=remote.name, quiet=True, **sizes) as shown:
        while True:
            try:
                chunk = answer.read1(_CHUNK)  # returns what one packet brought
            except TimeoutError:
                raise UserError(_stalled(remote, received, patience)) from None
            except (OSError, http.client.HTTPException) as error:
                raise UserError(
                    f"{remote.url}: broke off at byte {received} of {remote.size}: {_reason(error)}"
                ) from error
            if not chunk:
                break
            received += len(chunk)
            if received > remote.size:
                raise UserError(f"{remote.url}: more than the file's {remote.size} bytes came")
            file.write(chunk)
            digest.update(chunk)
            shown.update(len(chunk))
            if received - marked >= _PROGRESS:
                marked, deadline = received, time.monotonic() + patience
            elif time.monotonic() > deadline:
                raise UserError(_stalled(remote, received, patience))
    if received != remote.size:
        raise UserError(f"{remote.url}: ended at byte {received} of {remote.size}")
    return digest.hexdigest()


def _stalled(remote: RemoteFile, received: int, patience: float) -> str:
    return (
        f"{remote.url}: stalled at byte {received} of {remote.size} "
        f"(less than 1 MiB in {patience:g} s)"
    )


def _reason(error: Exception) -> str:
    """What went wrong, in one line without numbers of the operating system."""
    import urllib.error

    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__
