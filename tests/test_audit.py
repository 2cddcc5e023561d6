"""`make audit`: a bill of materials in any case, and never green when nothing could be asked."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
HOLED = {"name": "jinja2", "version": "2.4", "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2", "3.0"]}]}


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
    """The exit status and the commands, if these sources answer with these pins and the others do not at all."""
    monkeypatch.setattr(audit, "ROOT", tmp_path)

    def status_of(answers: dict[str, list[dict[str, Any]]]) -> tuple[int, list[list[str]]]:
        ran: list[list[str]] = []

        def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
            ran.append([Path(command[0]).name, *command[1:]])
            if ran[-1][0] != "pip-audit":
                return subprocess.CompletedProcess(command, 0)
            pins = answers.get(command[command.index("-s") + 1])
            if pins is not None:
                Path(command[command.index("-o") + 1]).write_text(json.dumps({"dependencies": pins}))
            failed = pins is None or any(pin["vulns"] for pin in pins)
            return subprocess.CompletedProcess(command, int(failed), stderr="Traceback\nnobody there\n")

        monkeypatch.setattr(audit.subprocess, "run", run)
        return audit.main("/venv/bin/python"), ran

    return status_of


def test_without_a_source_nothing_is_green(
    audited: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bill of materials is written, every source is asked; an old report is no answer; a status of its own."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "audit.json").write_text(json.dumps({"dependencies": [SOUND]}))
    status, ran = audited({})
    assert status == 3
    assert [command[:3] for command in ran] == [
        ["cyclonedx-py", "environment", "/venv/bin/python"],
        ["pip-audit", "-s", "osv"],
        ["pip-audit", "-s", "pypi"],
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["osv: nobody there", "pypi: nobody there"]
    assert said[2].startswith("NOT AUDITED")


def test_a_known_hole_fails_and_is_named(audited: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Every pin is asked about, without installing anything; the first source that answers decides."""
    status, ran = audited({"osv": [SOUND, HOLED]})
    assert status == 1
    assert {"--no-deps", "--disable-pip", "--strict"} < set(ran[1])
    assert ran[1][ran[1].index("-r") + 1].endswith("constraints.txt")
    assert len(ran) == 2
    assert capsys.readouterr().out.splitlines()[1:] == ["jinja2 2.4: PYSEC-2014-8, mended in 2.7.2, 3.0"]


def test_the_next_source_is_asked_where_one_does_not_answer(audited: Callable[..., Any]) -> None:
    """And without holes it is green."""
    status, ran = audited({"pypi": [SOUND]})
    assert status == 0
    assert [command[2] for command in ran[1:]] == ["osv", "pypi"]
