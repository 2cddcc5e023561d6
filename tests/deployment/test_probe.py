"""The health check program succeeds only if every service responds as expected."""

import http.server
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployment.compose_file import ROOT

spec = importlib.util.spec_from_file_location("probe", ROOT / "deployment" / "probe.py")
assert spec is not None
assert spec.loader is not None
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)


class _Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._respond(403 if self.path == "/refused" else 200, b"healthy")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._respond(200, body if self.headers["Content-Type"] == "application/json" else b"")

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["probe.py", *arguments])
    try:
        probe.main()
    except SystemExit as error:
        return error.code
    return 0


def test_expected_responses_succeed(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe succeeds on status 200, on a response that contains the expected text, and on a POST of JSON."""
    assert _status(monkeypatch, f"{service}/a", f"{service}/b") == 0
    assert _status(monkeypatch, "--expect", "healthy", f"{service}/") == 0
    assert _status(monkeypatch, "--post", '{"history": []}', "--expect", "history", f"{service}/") == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("{}/a", "{}/refused"), "403"),
        (("--expect", "ready", "{}/"), "expected 'ready' in the response, but got 'healthy'"),
        (("http://127.0.0.1:9/",), "refused"),
    ],
)
def test_unexpected_responses_fail(
    arguments: tuple[str, ...], reason: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe fails and states the reason: an error status, a response without the expected text, or no server."""
    assert reason in str(_status(monkeypatch, *(argument.replace("{}", service) for argument in arguments)))
