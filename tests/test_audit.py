"""`make audit`: a bill of materials in any case, and never green when nothing could be asked."""

import http.server
import importlib.util
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "deployment" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, audit: ModuleType, tmp_path: Path) -> list[list[str]]:
    """The commands that would have been run; pip-audit finds a hole."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        ran.append([Path(command[0]).name, *command[1:]])
        return subprocess.CompletedProcess(command, 1 if command[0].endswith("pip-audit") else 0)

    monkeypatch.setattr(audit.subprocess, "run", run)
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    return ran


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if self.path == "/json" else "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_source_is_one_that_answers_as_it_should(audit: ModuleType, address: str) -> None:
    """A page of a proxy, or nobody, is no source of advisories."""
    assert audit.first_source({"page": f"{address}/html", "osv": f"{address}/json"}) == "osv"
    assert audit.first_source({"page": f"{address}/html", "nobody": "http://127.0.0.1:9/"}) is None


def test_without_a_source_nothing_is_green(
    audit: ModuleType, tools: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bill of materials is written; then a message that says what was not done, and a status of its own."""
    monkeypatch.setattr(audit, "first_source", lambda _sources: None)
    assert audit.main("/venv/bin/python") == 3
    assert [command[0] for command in tools] == ["cyclonedx-py"]
    assert tools[0][1:3] == ["environment", "/venv/bin/python"]
    assert "NOT AUDITED" in capsys.readouterr().err


def test_a_known_hole_fails(audit: ModuleType, tools: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pin is asked about, without installing anything, and pip-audit's verdict is the command's."""
    monkeypatch.setattr(audit, "first_source", lambda _sources: "osv")
    assert audit.main("/venv/bin/python") == 1
    assert tools[1][:3] == ["pip-audit", "-s", "osv"]
    assert {"--no-deps", "--disable-pip", "--strict"} < set(tools[1])
    assert tools[1][tools[1].index("-r") + 1].endswith("constraints.txt")
