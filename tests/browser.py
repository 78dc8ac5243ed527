"""Headless Chromium by its driver's HTTP (W3C WebDriver), for pages that are files."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
# With all details open. What is in a box that scrolls by itself may be wider than the page.
SEEN = """document.querySelectorAll('details').forEach(e => e.open = true); return {
  wide: document.documentElement.scrollWidth, room: document.documentElement.clientWidth,
  details: document.querySelectorAll('details').length,
  beyond: [...document.body.querySelectorAll('*')].filter(e => !e.closest('.wide *'))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.outerHTML.slice(0, 80)),
  images: [...document.images].map(e => e.naturalWidth),
  plots: [...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width),
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  loaded: performance.getEntriesByType('resource').map(e => e.name).filter(e => !/^data:/.test(e)),
}"""


class Browser:
    """A session with the driver at an address."""

    def __init__(self, address: str, chromium: str) -> None:
        options = {"binary": chromium, "args": ARGUMENTS}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._address = f"{address}/session"
        made = self._post("", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{made['sessionId']}"

    def _post(self, path: str, body: object) -> object:
        request = urllib.request.Request(
            self._address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def _devtools(self, command: str, **params: object) -> object:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, page: Path, width: int, scheme: str) -> dict:
        """Show a page on a screen so wide, "dark" or "light"; return what is seen of it."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **screen)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._devtools("Emulation.setEmulatedMedia", features=media)
        self._post("/url", {"url": page.resolve().as_uri()})
        return self._post("/execute/sync", {"script": SEEN, "args": []})

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """Save the whole page as it is shown."""
        found = self._devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser."""
        urllib.request.urlopen(urllib.request.Request(self._address, method="DELETE"), timeout=60)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for a while; the test is skipped where there is none."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    running = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = next(
            found[1]
            for line in running.stdout
            if (found := re.search(r"started successfully on port (\d+)", line))
        )
        session = Browser(f"http://127.0.0.1:{port}", chromium)
        try:
            yield session
        finally:
            session.close()
    finally:
        running.terminate()
        running.wait()
