"""A headless Chromium for tests of pages, driven over its own debugging protocol: open, click, read, take a picture."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "headless_shell")


def find() -> str | None:
    """The program; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. Every method raises AssertionError or TimeoutError where the page is not as it should be."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self.errors: list[str] = []
        """What its scripts have thrown."""
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"])[:500])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go there. What is waited for after this is of the new page: an old one may look alike."""
        self.run("window.left = true")
        self._call("Page.navigate", url=url)
        self.wait("!window.left")

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Be a window of this size on a system that is light or dark."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Until the expression gives something that holds; what it gives."""
        end = monotonic() + seconds
        while not (value := self.run(script)):
            if monotonic() > end:
                raise TimeoutError(f"never held: {script}; the page says: {self.text()[:600]}")
            sleep(0.05)
        return value

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_for(self, text: str, seconds: float = 30) -> None:
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(text)})", seconds)

    def click(self, selector: str, text: str = "") -> None:
        """With the mouse, on the first element that fits and holds `text`, once it stays where it is."""
        find_it = _element(selector, text)
        self.wait(f"!!{find_it}")
        middle = (
            f"(() => {{ const e = {find_it}; e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        before, (x, y) = None, self.run(middle)
        while before != (x, y):
            sleep(0.1)
            before, (x, y) = (x, y), self.run(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, field: str, option: str) -> None:
        """An option of a drop-down list. A list that does not open is clicked again, as people do: on a busy machine
        its label may stand there before it can do anything."""
        for _ in range(5):
            self.click(".q-field", field)
            with suppress(TimeoutError):
                self.wait(f"!!{_element('.q-item', option)}", seconds=5)
                break
        self.click(".q-item", option)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


def _element(selector: str, text: str) -> str:
    """JavaScript for the first element that fits and holds `text`."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.textContent.includes({json.dumps(text)}))"
    )


@contextmanager
def page() -> Iterator[Page]:
    """A fresh browser with one page; it is ended with the block."""
    from urllib.request import urlopen

    from websockets.sync.client import connect

    program = find()
    assert program
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--no-first-run", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            with urlopen(f"http://127.0.0.1:{_port(Path(profile))}/json", timeout=60) as answer:
                targets = json.load(answer)
            target = next(target for target in targets if target["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _port(profile: Path, seconds: float = 60) -> int:
    """Where the browser listens, from the file in which it says so."""
    file, end = profile / "DevToolsActivePort", monotonic() + seconds
    while not (file.is_file() and file.read_text().count("\n")):
        assert monotonic() < end, "the browser never said where it listens"
        sleep(0.05)
    return int(file.read_text().splitlines()[0])
