"""The service runs with the packages of its dependency group alone, and takes the model from an MLflow server."""

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.tracking import open_tracking
from tests.serving.test_service import register
from tests.tracking.conftest import plain_environment
from tests.tracking.only_requirements import link_packages
from tests.tracking.served import write_trained_bundle

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240
ABSENT = ("dagster", "polars", "pyarrow", "sqlalchemy", "sentence_transformers", "faiss", "matplotlib")
IMPORTS = """
import json, sys
import macrec_pipeline.cli.application, macrec_pipeline.serving.server, macrec_pipeline.serving.app
third_party = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps(sorted(third_party)))
"""


def test_the_process_of_the_service_imports_no_model_code() -> None:
    """torch and transformers are in the memory of the model's process only; Dagster and polars are in neither."""
    output = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=environment(), capture_output=True, text=True, check=True
    )
    imported = set(json.loads(output.stdout))
    assert {"fastapi", "pydantic", "prometheus_client"} <= imported
    assert imported & {*ABSENT, "torch", "transformers", "pandas", "numpy"} == set()


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MACREC_"))}
    return inherited | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"} | variables


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], url: str, **options: Any) -> Iterator[None]:
    """Run a server until the end of the block, which begins when the URL answers with status 200."""
    with subprocess.Popen(command, **options) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while not answers(url):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.3)
            yield
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=10).status == 200)
    except (urllib.error.HTTPError, OSError):
        return False


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an MLflow server that passes on artifacts, as in the deployment, with one registered version."""
    url, folder = f"http://127.0.0.1:{free_port()}", tmp_path / "mlflow"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--port", url.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    variables = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (
        (folder / "log").open("w") as log,
        plain_environment(),
        running(command, f"{url}/health", env=variables, stdout=log, stderr=log),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert register(open_tracking(tmp_path / "home"), write_trained_bundle(tmp_path / "parts")) == 1
        yield url


def environment_with_only(requirements: list[str], folder: Path) -> Path:
    """Make a virtual environment with only the packages that some requirements need, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = link_packages(requirements, folder / "packages")
    (packages / "macrec_pipeline").symlink_to(ROOT / "macrec_pipeline")
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    (site_packages / "packages.pth").write_text(f"{packages}\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_dependency_group_is_all_that_the_service_needs(registry: str, tmp_path: Path) -> None:
    """In an environment without Dagster and polars, `macrec serve` loads the champion and recommends."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    python = environment_with_only(content["dependency-groups"]["serve"], tmp_path / "venv")
    variables = environment(MLFLOW_TRACKING_URI=registry, MACREC_HOME=str(tmp_path / "served"), PYTHONPATH="")
    code = f"from importlib.util import find_spec\nprint([name for name in {ABSENT} if find_spec(name)])"
    found = subprocess.run([python, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    service = f"http://127.0.0.1:{free_port()}"
    command = [str(python), "-m", "macrec_pipeline.cli", "serve", "demo", "--port", service.rpartition(":")[2]]
    with (
        (tmp_path / "log").open("w") as log,
        running(command, f"{service}/ready", env=variables, cwd=tmp_path, stdout=log, stderr=log),
    ):
        body = json.dumps({"history": ["item-3"], "k": 3}).encode()
        request = urllib.request.Request(f"{service}/recommend", body, {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
    assert len(answer["item_ids"]) == 3
    assert answer["fallback"] == "none"
