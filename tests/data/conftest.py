"""A local HTTP server with bad manners on request; no way to the network or the user's files."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator

import pytest

from score_sde.data import prepared

Behaviour = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No test reads the user's caches; a download that misses the local server is refused at once.

    Port 9 (discard) has no listener, so a proxy there ends every connection.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def no_preparation():
    """For tests of a set that cannot be had: no TFDS that would try for minutes."""
    if prepared.can_prepare():
        pytest.skip("TensorFlow is installed, so TFDS would try to prepare the set")


class Server:
    """`serve(path, behaviour)` answers a path; `url(path)` is its address; `asked` the requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def serve(self, path: str, behaviour: Behaviour) -> str:
        self.behaviours[f"/{path}"] = behaviour
        return self.url(path)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            behaviour = state.behaviours.get(self.path)
            if behaviour is None:
                self.send_error(404)
                return
            with contextlib.suppress(ConnectionError):  # the client leaves, as it should
                behaviour(self)

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{httpd.server_port}")
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    state.closing.set()  # lets those who stall go
    httpd.shutdown()
    httpd.server_close()
