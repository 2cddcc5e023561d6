"""A headless Chromium that a test uses as a person would: it opens pages, reads their text and clicks their buttons.

The test controls it with the DevTools protocol, over a WebSocket on this machine.
"""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1600,1000",
    # no name but that of this machine can be resolved, so that a page cannot contact another machine
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
_POLL_SECONDS = 0.25


class Page:
    """The tab of a browser. A failed wait saves a screenshot and raises `AssertionError` with the page's text."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._socket, self._loop, self._folder = socket, loop, folder
        self._number = 0

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def text(self) -> str:
        """Return the text that a person can read on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, expression: str, *, what: str, seconds: float = 60.0) -> Any:
        """Wait until a JavaScript expression is true; returns its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.evaluate(expression):
                return found
            time.sleep(_POLL_SECONDS)
        screenshot = self.screenshot("missing.png")
        raise AssertionError(f"{what} did not appear within {seconds:.0f} s ({screenshot}):\n{self.text()[:3000]}")

    def click(self, label: str, *, seconds: float = 60.0) -> None:
        """Click the middle of the button or link with exactly this label, once it is visible and enabled."""
        find, position = _FIND_POSITION % json.dumps(label), None
        # An element that slides into the page is clicked once it has stopped moving.
        while position != (found := self.wait_for(find, what=f"the button {label!r}", seconds=seconds)):
            position = found
            time.sleep(_POLL_SECONDS)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **position)

    def screenshot(self, name: str) -> Path:
        """Save a screenshot in the browser's folder; returns its path."""
        path = self._folder / name
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; None while the browser is leaving a page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its response; events in between are ignored."""
        self._number += 1
        return self._loop.run_until_complete(self._call(self._number, method, params))

    async def _call(self, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            response = await self._socket.receive_json(timeout=60)
            if response.get("id") == number:
                assert "error" not in response, response["error"]
                return dict(response["result"])


# The middle of the visible and enabled button or link with that label, or null.
_FIND_POSITION = """(() => {
  const shown = [...document.querySelectorAll('button, a')].filter(one => one.innerText.trim() === %s && !one.disabled);
  const box = shown.map(one => one.getBoundingClientRect()).find(box => box.width && box.height);
  return box ? {x: box.x + box.width / 2, y: box.y + box.height / 2} : null;
})()"""


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser with an empty page; its profile and screenshots are in `folder`. It ends with the block."""
    assert PROGRAM is not None
    command = [PROGRAM, *_QUIET, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(folder / "profile" / "DevToolsActivePort")
        session = loop.run_until_complete(_session())
        yield Page(loop.run_until_complete(_connect(session, port)), loop, folder)
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        process.terminate()
        process.wait(30)
        loop.close()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()  # aiohttp requires that it is created inside the running loop


async def _connect(session: aiohttp.ClientSession, port: int) -> aiohttp.ClientWebSocketResponse:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        (page,) = [target for target in await response.json() if target["type"] == "page"]
    return await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)


def _port(file: Path, *, seconds: float = 60.0) -> int:
    """Return the port that the browser has chosen, which it writes to a file once it listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"the browser did not start within {seconds:.0f} s")
