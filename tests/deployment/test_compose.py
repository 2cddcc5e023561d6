"""docker-compose.yml against the Compose specification and against rules of our own; each rule is shown to refuse."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.deployment import compose_file
from tests.deployment.compose_checks import PINNED, problems

Break = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return compose_file.read()


def against_the_specification(content: dict[str, Any]) -> None:
    """Raises ValueError."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    compose_spec.PyCompose.from_json(json.dumps(content)).validate()


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_the_file_follows_the_specification(name: str) -> None:
    """With the variables filled in, every key and value is one that the Compose specification knows."""
    content = compose_file.filled(compose_file.read(name), compose_file.SECRETS)
    against_the_specification(content)


BEYOND_THE_SPECIFICATION: dict[str, Break] = {
    "misspelt key": lambda services: services["mlflow"].update(healthchek={}),
    "no such condition": lambda services: services["daemon"]["depends_on"]["code-server"].update(condition="happy"),
    "no duration": lambda services: services["postgres"]["healthcheck"].update(interval="soon"),
    "no size": lambda services: services["postgres"].update(mem_limit="lots"),
    "no port": lambda services: services["mlflow"].update(ports=["127.0.0.1:five:5000"]),
    "undeclared config": lambda services: services["s3"].update(configs=[{"source": "none", "target": "/x"}]),
}


@pytest.mark.parametrize("fault", BEYOND_THE_SPECIFICATION)
def test_the_specification_refuses(fault: str, compose: dict[str, Any]) -> None:
    """The check against the specification is one that can fail."""
    content = compose_file.filled(copy.deepcopy(compose), compose_file.SECRETS)
    BEYOND_THE_SPECIFICATION[fault](content["services"])
    with pytest.raises(ValueError, match=r"."):
        against_the_specification(content)


def test_the_stack_is_whole_pinned_private_and_watched(compose: dict[str, Any]) -> None:
    """None of our own rules finds anything."""
    assert problems(compose) == []


FAULTS: dict[str, Break] = {
    "daemon: depends on nobody": lambda c: c["services"]["daemon"]["depends_on"].update(nobody={"condition": "x"}),
    "waits until s3 is healthy, which nothing": lambda c: c["services"]["s3"].pop("healthcheck"),
    "waits for the end of s3-bucket": lambda c: c["services"]["s3-bucket"].update(restart="always"),
    "to be service_started": lambda c: c["services"]["mlflow"]["depends_on"]["postgres"].update(
        condition="service_started"
    ),
    "volumes: state is used but not declared": lambda c: c["volumes"].pop("state"),
    "volumes: old is declared but not used": lambda c: c["volumes"].update(old=None),
    "configs: dagster-instance is used but": lambda c: c["configs"].pop("dagster-instance"),
    "mounts /var/run/docker.sock": lambda c: c["services"]["daemon"]["volumes"].append("/var/run/docker.sock:/d"),
    "image postgres:latest is not pinned": lambda c: c["services"]["postgres"].update(image="postgres:latest"),
    "image postgres:17-alpine is not pinned": lambda c: c["services"]["postgres"].update(image="postgres:17-alpine"),
    "port 3000:3000 is not on loopback": lambda c: c["services"]["webserver"].update(ports=["3000:3000"]),
    "port 0.0.0.0:1:1 is not on loopback": lambda c: c["services"]["s3"].update(ports=["0.0.0.0:1:1"]),
    "s3: is on the network of the machine": lambda c: c["services"]["s3"].update(network_mode="host"),
    "POSTGRES_PASSWORD is not a required": lambda c: c["services"]["postgres"]["environment"].update(
        POSTGRES_PASSWORD="${POSTGRES_PASSWORD:-macrec}"
    ),
    "MLFLOW_BACKEND_STORE_URI holds a password": lambda c: c["services"]["mlflow"]["environment"].update(
        MLFLOW_BACKEND_STORE_URI="postgresql://macrec:macrec@postgres/mlflow"
    ),
    "mlflow: a secret on the command line": lambda c: c["services"]["mlflow"]["command"].append(
        "--backend-store-uri=postgresql://macrec:${POSTGRES_PASSWORD:?set it}@postgres/mlflow"
    ),
    "configs: dagster-instance holds a secret": lambda c: c["configs"]["dagster-instance"].update(
        content="storage: {postgres: {postgres_db: {password: macrec}}}"
    ),
    "champion: no health check": lambda c: c["services"]["champion"]["healthcheck"].update(test="curl x"),
    "mlflow: its health check does not ask by its own name": lambda c: c["services"]["mlflow"]["healthcheck"].update(
        test=["CMD", "python", "/app/probe.py", "http://localhost:5000/health"]
    ),
    "s3: no memory limit": lambda c: c["services"]["s3"].pop("mem_limit"),
    "s3: may gain privileges": lambda c: c["services"]["s3"].pop("security_opt"),
    "champion: keeps capabilities": lambda c: c["services"]["champion"].pop("cap_drop"),
    "s3: asks for privileges": lambda c: c["services"]["s3"].update(user="root"),
    "which MLflow refuses": lambda c: c["services"]["champion"]["environment"].update(
        MLFLOW_TRACKING_URI="http://tracking:5000"
    ),
    "answers to any host name": lambda c: c["services"]["mlflow"]["command"].insert(2, "--allowed-hosts=mlflow:5000,*"),
}


@pytest.mark.parametrize("line", FAULTS)
def test_our_rules_refuse(line: str, compose: dict[str, Any]) -> None:
    """Each rule finds the fault that it is there for."""
    broken = copy.deepcopy(compose)
    FAULTS[line](broken)
    assert any(line in found for found in problems(broken))


def test_a_missing_secret_is_said(compose: dict[str, Any]) -> None:
    """Without POSTGRES_PASSWORD, or with an empty one, nothing starts; the message says where it belongs."""
    for settings in ({}, compose_file.SECRETS | {"POSTGRES_PASSWORD": ""}):
        with pytest.raises(KeyError, match=r"set it in \.env"):
            compose_file.filled(compose, settings)


def test_the_example_names_every_variable_and_no_secret(compose: dict[str, Any]) -> None:
    """.env.example has a line for each variable of the file, and holds no secret; git and the build leave .env out."""
    asked, example = compose_file.variables_of(compose), compose_file.example_settings()
    assert set(example) == set(asked)
    empty = {name for name, value in example.items() if not value}
    assert empty == {*compose_file.SECRETS, "MACREC_ON_FAILURE_WEBHOOK"}  # whoever knows its address can write to it
    assert all(how == ":?" for name, how in asked.items() if name in compose_file.SECRETS)
    assert ".env" in (compose_file.ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert (compose_file.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_the_card_is_laid_over_services_that_exist(compose: dict[str, Any]) -> None:
    """The GPU file changes services of the main one, all that run the image, and reserves a card for the runs."""
    over = compose_file.read("docker-compose.gpu.yml")["services"]
    ours = {name for name, service in compose["services"].items() if service["image"] == "macrec-pipeline:local"}
    assert set(over) == ours
    assert {service["image"] for service in over.values()} == {"macrec-pipeline:cuda"}
    (device,) = over["code-server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_images_are_pinned_staged_and_unprivileged() -> None:
    """Every stage begins with a pinned image or a stage before it; what runs is no build stage and not root."""
    text = (compose_file.ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    origins = {name: origin for origin, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, flags=re.MULTILINE)}
    assert all(origin in stages or PINNED.fullmatch(origin) for origin in origins.values())
    for name in ("mlflow", "pipeline"):
        assert origins[name] == "run"
        assert "pip install" not in stages[name] + stages["run"]
    assert re.findall(r"^USER (\S+)", text, flags=re.MULTILINE) == ["macrec"]
    assert stages["run"].rstrip().endswith("USER macrec")
    assert all("-c constraints.txt" in line for line in text.splitlines() if "pip install" in line)


def test_the_files_that_the_images_copy_exist() -> None:
    """What the Dockerfile copies from the checkout is there and is not kept out of the build."""
    text = (compose_file.ROOT / "Dockerfile").read_text(encoding="utf-8")
    let_in = {
        line[1:] for line in (compose_file.ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()]
    assert len(copied) == 7
    for path in copied:
        assert (compose_file.ROOT / path).exists(), path
        assert path.split("/")[0] in let_in, path
