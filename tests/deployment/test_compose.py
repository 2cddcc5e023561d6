"""docker-compose.yml follows the Compose specification and this project's rules, and each rule detects violations."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.deployment import compose_file
from tests.deployment.compose_checks import PINNED, problems

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return compose_file.read()


def validate_specification(content: dict[str, Any]) -> None:
    """Raise ValueError if the content violates the Compose specification."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    compose_spec.PyCompose.from_json(json.dumps(content)).validate()


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_file_follows_specification(name: str) -> None:
    """Every key and value of the file is valid in the Compose specification once the variables are replaced."""
    content = compose_file.substitute(compose_file.read(name), compose_file.SECRETS)
    validate_specification(content)


SPECIFICATION_VIOLATIONS: dict[str, Change] = {
    "misspelt key": lambda services: services["mlflow"].update(healthchek={}),
    "unknown condition": lambda services: services["daemon"]["depends_on"]["code-server"].update(condition="happy"),
    "invalid duration": lambda services: services["postgres"]["healthcheck"].update(interval="soon"),
    "invalid size": lambda services: services["postgres"].update(mem_limit="lots"),
    "invalid port": lambda services: services["mlflow"].update(ports=["127.0.0.1:five:5000"]),
    "undeclared config": lambda services: services["s3"].update(configs=[{"source": "none", "target": "/x"}]),
}


@pytest.mark.parametrize("violation", SPECIFICATION_VIOLATIONS)
def test_specification_violations_are_detected(violation: str, compose: dict[str, Any]) -> None:
    """The specification check rejects each kind of invalid key or value."""
    content = compose_file.substitute(copy.deepcopy(compose), compose_file.SECRETS)
    SPECIFICATION_VIOLATIONS[violation](content["services"])
    with pytest.raises(ValueError, match=r"."):
        validate_specification(content)


def test_stack_has_no_problems(compose: dict[str, Any]) -> None:
    """The rules of `compose_checks` find no problem in docker-compose.yml."""
    assert problems(compose) == []


CHANGES_BY_PROBLEM: dict[str, Change] = {
    "daemon: depends on nobody": lambda c: c["services"]["daemon"]["depends_on"].update(nobody={"condition": "x"}),
    "waits until s3 is healthy, but s3 has no": lambda c: c["services"]["s3"].pop("healthcheck"),
    "waits until s3-bucket has completed, but": lambda c: c["services"]["s3-bucket"].update(restart="always"),
    "condition service_started of postgres": lambda c: c["services"]["mlflow"]["depends_on"]["postgres"].update(
        condition="service_started"
    ),
    "volumes: state is used but not declared": lambda c: c["volumes"].pop("state"),
    "volumes: old is declared but not used": lambda c: c["volumes"].update(old=None),
    "configs: dagster-instance is used but": lambda c: c["configs"].pop("dagster-instance"),
    "mounts the host path /var/run/docker.sock": lambda c: c["services"]["daemon"]["volumes"].append(
        "/var/run/docker.sock:/d"
    ),
    "image postgres:latest is not pinned": lambda c: c["services"]["postgres"].update(image="postgres:latest"),
    "image postgres:17-alpine is not pinned": lambda c: c["services"]["postgres"].update(image="postgres:17-alpine"),
    "port 3000:3000 is not on loopback": lambda c: c["services"]["webserver"].update(ports=["3000:3000"]),
    "port 0.0.0.0:1:1 is not on loopback": lambda c: c["services"]["s3"].update(ports=["0.0.0.0:1:1"]),
    "s3: uses the network of the host": lambda c: c["services"]["s3"].update(network_mode="host"),
    "POSTGRES_PASSWORD is not a required": lambda c: c["services"]["postgres"]["environment"].update(
        POSTGRES_PASSWORD="${POSTGRES_PASSWORD:-macrec}"
    ),
    "MLFLOW_BACKEND_STORE_URI contains a password": lambda c: c["services"]["mlflow"]["environment"].update(
        MLFLOW_BACKEND_STORE_URI="postgresql://macrec:macrec@postgres/mlflow"
    ),
    "mlflow: has a secret on its command line": lambda c: c["services"]["mlflow"]["command"].append(
        "--backend-store-uri=postgresql://macrec:${POSTGRES_PASSWORD:?set it}@postgres/mlflow"
    ),
    "configs: dagster-instance contains a secret": lambda c: c["configs"]["dagster-instance"].update(
        content="storage: {postgres: {postgres_db: {password: macrec}}}"
    ),
    "champion: has no health check": lambda c: c["services"]["champion"]["healthcheck"].update(test="curl x"),
    "mlflow: its health check does not use the name": lambda c: c["services"]["mlflow"]["healthcheck"].update(
        test=["CMD", "python", "/app/probe.py", "http://localhost:5000/health"]
    ),
    "s3: has no memory limit": lambda c: c["services"]["s3"].pop("mem_limit"),
    "s3: may gain privileges": lambda c: c["services"]["s3"].pop("security_opt"),
    "champion: keeps capabilities": lambda c: c["services"]["champion"].pop("cap_drop"),
    "s3: requests privileges": lambda c: c["services"]["s3"].update(user="root"),
    "postgres: runs as the user of its image": lambda c: c["services"]["postgres"].pop("user"),
    "daemon: may change its own files": lambda c: c["services"]["daemon"].pop("read_only"),
    "mlflow: has no folder for temporary files": lambda c: c["services"]["mlflow"].pop("tmpfs"),
    "code-server: has no limit of processes": lambda c: c["services"]["code-server"].pop("pids_limit"),
    "s3-bucket: has no limit of CPUs": lambda c: c["services"]["s3-bucket"].pop("cpus"),
    "webserver: its log may fill the disk": lambda c: c["services"]["webserver"]["logging"].pop("options"),
    "champion: reaches code-server": lambda c: c["services"]["champion"]["networks"].append("pipeline"),
    "champion: reaches s3": lambda c: [c["services"][name].pop("networks") for name in ("champion", "s3")],
    "mlflow: connects to PostgreSQL as its administrator": lambda c: c["services"]["mlflow"]["environment"].update(
        MLFLOW_BACKEND_STORE_URI="postgresql://macrec:${POSTGRES_PASSWORD:?set it}@postgres/mlflow"
    ),
    "daemon: has the password of PostgreSQL's administrator": lambda c: c["services"]["daemon"]["environment"].update(
        DAGSTER_POSTGRES_PASSWORD="${POSTGRES_PASSWORD:?set it}"
    ),
    "old: connects to PostgreSQL as its administrator": lambda c: c["configs"].update(
        old={"content": "username: macrec"}
    ),
    "daemon: may write to /data": lambda c: c["services"]["daemon"]["volumes"].append("${MACREC_DATA:-./data}:/data"),
    "a host name that MLflow refuses": lambda c: c["services"]["champion"]["environment"].update(
        MLFLOW_TRACKING_URI="http://tracking:5000"
    ),
    "accepts any host name": lambda c: c["services"]["mlflow"]["command"].insert(2, "--allowed-hosts=mlflow:5000,*"),
}


@pytest.mark.parametrize("problem", CHANGES_BY_PROBLEM)
def test_each_rule_detects_its_problem(problem: str, compose: dict[str, Any]) -> None:
    """Each rule reports the change that violates it."""
    broken = copy.deepcopy(compose)
    CHANGES_BY_PROBLEM[problem](broken)
    assert any(problem in line for line in problems(broken))


def test_missing_secret_is_reported(compose: dict[str, Any]) -> None:
    """If POSTGRES_PASSWORD is missing or empty, Compose stops with a message that says where to set it."""
    for settings in ({}, compose_file.SECRETS | {"POSTGRES_PASSWORD": ""}):
        with pytest.raises(KeyError, match=r"set it in \.env"):
            compose_file.substitute(compose, settings)


def test_example_lists_every_variable_without_secrets(compose: dict[str, Any]) -> None:
    """.env.example has a line for each variable and no secret value, and git and the image build ignore .env."""
    variables, example = compose_file.variables_of(compose), compose_file.example_settings()
    assert set(example) == set(variables)
    empty = {name for name, value in example.items() if not value}
    # The address of a webhook is a secret, too. An empty package index stands for the default one.
    assert empty == {*compose_file.SECRETS, "MACREC_ON_FAILURE_WEBHOOK", "MACREC_TORCH_INDEX"}
    assert all(operator == ":?" for name, operator in variables.items() if name in compose_file.SECRETS)
    assert ".env" in (compose_file.ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert (compose_file.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_gpu_file_changes_existing_services(compose: dict[str, Any]) -> None:
    """The GPU file changes exactly the services that run the pipeline image, and reserves a GPU for runs."""
    gpu_services = compose_file.read("docker-compose.gpu.yml")["services"]
    pipeline_services = {
        name for name, service in compose["services"].items() if service["image"] == "macrec-pipeline:local"
    }
    assert set(gpu_services) == pipeline_services
    assert {service["image"] for service in gpu_services.values()} == {"macrec-pipeline:cuda"}
    (device,) = gpu_services["code-server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_images_are_pinned_staged_and_unprivileged() -> None:
    """Stages start from pinned images or other stages; the final images install nothing and do not run as root."""
    text = (compose_file.ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    origins = {name: origin for origin, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, flags=re.MULTILINE)}
    assert all(origin in stages or PINNED.fullmatch(origin) for origin in origins.values())
    for name in ("mlflow", "pipeline", "serve"):
        assert origins[name] == "run"
        assert "pip install" not in stages[name] + stages["run"]
    assert re.findall(r"^USER (\S+)", text, flags=re.MULTILINE) == ["macrec"]
    assert stages["run"].rstrip().endswith("USER macrec")


def test_images_install_only_files_with_known_hashes() -> None:
    """All but this package, and torch from an index whose builds have other hashes; nothing adds dependencies."""
    text = (compose_file.ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install [^;\n]+", text)
    assert len(installs) == 9
    for install in installs:
        assert "--no-deps" in install
        locked = re.search(r"--require-hashes -r locked/([\w-]+\.txt)", install)
        if locked:
            assert (compose_file.ROOT / "deployment" / "locked" / locked[1]).is_file()
        else:
            from_index = '-c constraints.txt --index-url "$TORCH_INDEX_URL" torch' in install
            assert from_index or install.endswith("--no-build-isolation ."), install


def test_copied_files_exist() -> None:
    """Every file that the Dockerfile copies from the checkout exists and is not excluded by .dockerignore."""
    text = (compose_file.ROOT / "Dockerfile").read_text(encoding="utf-8")
    included = {
        line[1:] for line in (compose_file.ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [
        path for paths in re.findall(r"^COPY (?!--)(.*) \S+$", text, flags=re.MULTILINE) for path in paths.split()
    ]
    assert len(copied) == 12
    for path in copied:
        assert (compose_file.ROOT / path).exists(), path
        assert path.split("/")[0] in included, path
