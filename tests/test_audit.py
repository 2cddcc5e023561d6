"""`make audit` always writes a bill of materials, and never succeeds if no advisory service responds."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAFE = {"name": "numpy", "version": "2.0", "vulns": []}
VULNERABLE = {"name": "jinja2", "version": "2.4", "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2", "3.0"]}]}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "deployment" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def audited(
    monkeypatch: pytest.MonkeyPatch, audit: ModuleType, tmp_path: Path
) -> Callable[[dict[str, list[dict[str, Any]]]], tuple[int, list[list[str]]]]:
    """Run the audit with given responses of some services, and return its exit status and commands."""
    monkeypatch.setattr(audit, "ROOT", tmp_path)

    def run_audit(responses: dict[str, list[dict[str, Any]]]) -> tuple[int, list[list[str]]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
            commands.append([Path(command[0]).name, *command[1:]])
            if commands[-1][0] != "pip-audit":
                return subprocess.CompletedProcess(command, 0)
            pins = responses.get(command[command.index("-s") + 1])
            if pins is not None:
                Path(command[command.index("-o") + 1]).write_text(json.dumps({"dependencies": pins}))
            failed = pins is None or any(pin["vulns"] for pin in pins)
            return subprocess.CompletedProcess(command, int(failed), stderr="Traceback\nno connection\n")

        monkeypatch.setattr(audit.subprocess, "run", run)
        return audit.main("/venv/bin/python"), commands

    return run_audit


def test_without_a_response_the_audit_fails(
    audited: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bill of materials is written, every service is tried, and an old report does not count."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "audit.json").write_text(json.dumps({"dependencies": [SAFE]}))
    status, commands = audited({})
    assert status == 3
    assert [command[:3] for command in commands] == [
        ["cyclonedx-py", "environment", "/venv/bin/python"],
        ["pip-audit", "-s", "osv"],
        ["pip-audit", "-s", "pypi"],
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["osv: no connection", "pypi: no connection"]
    assert lines[2].startswith("NOT AUDITED")


def test_a_known_vulnerability_fails_the_audit(audited: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Every pinned version is checked without installing it, and the first service that responds decides."""
    status, commands = audited({"osv": [SAFE, VULNERABLE]})
    assert status == 1
    assert {"--no-deps", "--disable-pip", "--strict"} < set(commands[1])
    assert commands[1][commands[1].index("-r") + 1].endswith("constraints.txt")
    assert len(commands) == 2
    assert capsys.readouterr().out.splitlines()[1:] == ["jinja2 2.4: PYSEC-2014-8, fixed in 2.7.2, 3.0"]


def test_the_next_service_is_tried_if_one_does_not_respond(audited: Callable[..., Any]) -> None:
    """Without vulnerabilities, the exit status is 0."""
    status, commands = audited({"pypi": [SAFE]})
    assert status == 0
    assert [command[2] for command in commands[1:]] == ["osv", "pypi"]
