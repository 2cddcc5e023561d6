"""The files around the package: Dagster's instances and workspaces, Makefile, CI script.

For Docker Compose see tests/deployment.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from dagster._utils.tags import TagConcurrencyLimitsCounter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("origin", ["dagster_home", "compose"])
def test_the_dagster_instance_is_valid_and_private(origin: str, compose: dict[str, Any], tmp_path: Path) -> None:
    """Dagster accepts both instance files. Both turn telemetry off, and limit each pool and each data set to one."""
    if origin == "compose":
        (tmp_path / "dagster.yaml").write_text(compose["configs"]["dagster-instance"]["content"], encoding="utf-8")
    else:
        shutil.copy(ROOT / "dagster_home" / "dagster.yaml", tmp_path)
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["telemetry"]["enabled"] is False
    assert config["nux"]["enabled"] is False
    assert config["concurrency"]["pools"]["default_limit"] == 1
    (per_dataset,) = config["concurrency"]["runs"]["tag_concurrency_limits"]
    assert (per_dataset["key"], per_dataset["limit"]) == ("dagster/partition", 1)
    assert per_dataset["value"] == {"applyLimitPerUniqueValue": True}
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0


def test_runs_of_one_data_set_wait_for_each_other(tmp_path: Path) -> None:
    """The daemon counts runs that a command has launched too. Runs of another data set need not wait."""
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        limits = instance.get_concurrency_config().run_queue_config
    assert limits is not None
    demo, other = (dg.DagsterRun("refresh", tags={"dagster/partition": name}) for name in ("demo", "other"))
    limits_counter = TagConcurrencyLimitsCounter(list(limits.tag_concurrency_limits), [demo])
    assert (limits_counter.is_blocked(demo), limits_counter.is_blocked(other)) == (True, False)


def test_both_workspaces_name_the_same_code_location(compose: dict[str, Any]) -> None:
    """Command-line runs are tagged with the location's name, so it must not depend on how the UI was started."""
    local = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    remote = yaml.safe_load(compose["configs"]["dagster-workspace"]["content"])
    assert local["load_from"] == [{"python_module": "macrec_pipeline.definitions"}]
    assert remote["load_from"][0]["grpc_server"]["location_name"] == "macrec_pipeline.definitions"


def test_pyproject_does_not_override_the_workspace() -> None:
    """`[tool.dagster]` and `[tool.dg]` silently override workspace.yaml, so neither may be present."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert not {"dagster", "dg"} & set(project["tool"])


@pytest.mark.parametrize("target", ["demo", "test", "test-all"])
def test_make_installs_with_the_pins_before_anything_else(target: str, tmp_path: Path) -> None:
    """In a fresh clone, both commands create the environment and then install with constraints.txt."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TEST_"))}
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    plan = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in plan.splitlines() if "venv/bin/" in line or line.startswith("python3 -m venv")]
    assert lines[0] == f"python3 -m venv {tmp_path / 'venv'}"
    install = next(line for line in lines if "pip install" in line)
    assert "-c constraints.txt" in install
    last = {"demo": "bin/macrec run demo", "test": "-m 'not slow'", "test-all": "-m slow"}[target]
    assert lines[-1].endswith(last)
    assert lines.index(install) < len(lines) - 1
    if target != "demo":
        tools = [
            re.search(r"bin/(ruff check|ruff format --check|mypy|lint-imports|python -m pytest)", s) for s in lines
        ]
        assert [found[1] for found in tools if found] == [
            "ruff check",
            "ruff format --check",
            "mypy",
            "lint-imports",
            *["python -m pytest"] * {"test": 1, "test-all": 2}[target],
        ]


def test_make_names_the_missing_debian_package(tmp_path: Path) -> None:
    """Debian ships `venv` separately from Python. Without it, a message says which package to install."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    interpreter = tmp_path / "python-without-venv"
    interpreter.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n', encoding="utf-8")
    interpreter.chmod(0o755)
    command = ["make", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={interpreter}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stderr


def test_ci_runs_make_test_all_in_a_new_environment() -> None:
    """CI tests the README's installation: a new environment outside the checkout, then the same target as a person."""
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert text.rstrip().splitlines()[-1] == 'make test-all VENV="$workspace/venv"'
    subprocess.run(["bash", "-n", str(script)], check=True)
