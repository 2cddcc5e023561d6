"""A headless Chromium that a test drives as a person does: it opens pages, reads their text and presses their buttons.

It is spoken to by the DevTools protocol, over a websocket of this machine.
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
    # every other name than this machine's is unknown, so that a page can ask nobody else
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
_POLL_SECONDS = 0.25


class Page:
    """The one tab of a browser. Every wait ends in an `AssertionError` that quotes the page, and leaves a picture."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._socket, self._loop, self._folder = socket, loop, folder
        self._number = 0

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def text(self) -> str:
        """What a person can read of it."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, expression: str, *, what: str, seconds: float = 60.0) -> Any:
        """The value of some JavaScript as soon as it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.evaluate(expression):
                return found
            time.sleep(_POLL_SECONDS)
        picture = self.picture("missing.png")
        raise AssertionError(f"{what} did not come within {seconds:.0f} s ({picture}):\n{self.text()[:3000]}")

    def press(self, label: str, *, seconds: float = 60.0) -> None:
        """Click the middle of the button or link that says exactly this, once it is there and can be pressed."""
        find, place = _PLACE_OF % json.dumps(label), None
        # what slides into the page is pressed once it stands still
        while place != (seen := self.wait_for(find, what=f"the button {label!r}", seconds=seconds)):
            place = seen
            time.sleep(_POLL_SECONDS)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def picture(self, name: str) -> Path:
        """A screenshot in the browser's folder."""
        path = self._folder / name
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript; None while a page is being left."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; events that come in between are nobody's."""
        self._number += 1
        return self._loop.run_until_complete(self._call(self._number, method, params))

    async def _call(self, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json(timeout=60)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])


# The innermost button or link with that label that is shown and not disabled; its middle, or nothing.
_PLACE_OF = """(() => {
  const shown = [...document.querySelectorAll('button, a')].filter(one => one.innerText.trim() === %s && !one.disabled);
  const box = shown.map(one => one.getBoundingClientRect()).find(box => box.width && box.height);
  return box ? {x: box.x + box.width / 2, y: box.y + box.height / 2} : null;
})()"""


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with an empty page, whose profile and pictures are in `folder`; it ends with the block."""
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
    return aiohttp.ClientSession()  # which wants to be made where it is used, in the loop


async def _connect(session: aiohttp.ClientSession, port: int) -> aiohttp.ClientWebSocketResponse:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        (page,) = [target for target in await answer.json() if target["type"] == "page"]
    return await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)


def _port(file: Path, *, seconds: float = 60.0) -> int:
    """The port that the browser chose, which it writes down when it listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"the browser did not start within {seconds:.0f} s")
