"""Checks of docker-compose.yml beyond the Compose specification: it is complete, pinned, private and monitored.

`problems` takes the parsed file, with variables not yet replaced, and returns one line per problem.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LOOPBACK_PORT = re.compile(r"127\.0\.0\.1:\d+:\d+")
REQUIRED = re.compile(r"\$\{\w+:\?[^}]+\}")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"://[^/:@\s]*:(?P<password>[^/@\s]+)@")
PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
Compose = Mapping[str, Any]


def problems(compose: Compose) -> list[str]:
    """Return all problems of a compose file."""
    checks = (
        dependencies,
        references,
        images,
        ports,
        networks,
        secrets,
        database_users,
        health,
        limits,
        privileges,
        read_only,
        allowed_hosts,
    )
    return [line for check in checks for line in check(compose)]


def dependencies(compose: Compose) -> Iterator[str]:
    """Yield dependencies that do not exist, or that are not waited for until they are healthy or have completed."""
    services = compose["services"]
    for name, service in services.items():
        for other, dependency in service.get("depends_on", {}).items():
            condition = dependency.get("condition")
            if other not in services:
                yield f"{name}: depends on {other}, which does not exist"
            elif condition == "service_healthy":
                if "healthcheck" not in services[other]:
                    yield f"{name}: waits until {other} is healthy, but {other} has no health check"
            elif condition == "service_completed_successfully":
                if services[other]["restart"] != "no":
                    yield f"{name}: waits until {other} has completed, but {other} is restarted"
            else:
                yield f"{name}: waits for the condition {condition} of {other} instead of service_healthy"


def references(compose: Compose) -> Iterator[str]:
    """Yield volumes and configs that are used but not declared, or declared but not used, and mounts of host paths."""
    used: dict[str, set[str]] = {"volumes": set(), "configs": set()}
    for name, service in compose["services"].items():
        used["configs"] |= {config["source"] for config in service.get("configs", [])}
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith(("/", "~")):
                yield f"{name}: mounts the host path {source}"
            elif not source.startswith("."):
                used["volumes"].add(source)
    for kind, names in used.items():
        declared = set(compose.get(kind, {}))
        yield from (f"{kind}: {name} is used but not declared" for name in sorted(names - declared))
        yield from (f"{kind}: {name} is declared but not used" for name in sorted(declared - names))


def images(compose: Compose) -> Iterator[str]:
    """Yield images that are neither built here nor pinned to at least a minor version."""
    built = {service["image"] for service in compose["services"].values() if "build" in service}
    for name, service in compose["services"].items():
        image = service.get("image", "")
        if image not in built and not PINNED.fullmatch(image):
            yield f"{name}: the image {image} is not pinned"


def ports(compose: Compose) -> Iterator[str]:
    """Yield ports that are not published on loopback only; no service requires a password."""
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not isinstance(port, str) or not LOOPBACK_PORT.fullmatch(port):
                yield f"{name}: the port {port} is not on loopback"
        if "network_mode" in service:
            yield f"{name}: uses the network of the host"


def networks(compose: Compose) -> Iterator[str]:
    """Yield the services that share a network with the champion, which needs none but MLflow."""
    networks_of = {name: set(service.get("networks", ["default"])) for name, service in compose["services"].items()}
    for name in sorted(networks_of.keys() - {"champion", "mlflow"}):
        if networks_of[name] & networks_of["champion"]:
            yield f"champion: reaches {name}"


def database_users(compose: Compose) -> Iterator[str]:
    """Yield clients of PostgreSQL that connect as its administrator or know the administrator's password."""
    administrator = compose["services"]["postgres"]["environment"]["POSTGRES_USER"]
    for name, service in compose["services"].items():
        for value in service.get("environment", {}).values() if name != "postgres" else ():
            if f"://{administrator}:" in str(value):
                yield f"{name}: connects to PostgreSQL as its administrator"
            if "POSTGRES_PASSWORD" in str(value):
                yield f"{name}: has the password of PostgreSQL's administrator"
    for config, content in compose.get("configs", {}).items():
        if re.search(rf"username: {administrator}\b", content.get("content", "")):
            yield f"{config}: connects to PostgreSQL as its administrator"


def secrets(compose: Compose) -> Iterator[str]:
    """Yield secrets with a default value, in a URL, in a config or on a command line."""
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAME.search(variable) and not REQUIRED.fullmatch(str(value)):
                yield f"{name}: {variable} is not a required variable"
            url = PASSWORD_IN_URL.search(str(value))
            if url and not REQUIRED.fullmatch(url["password"]):
                yield f"{name}: {variable} contains a password in plain text"
        for argument in [*service.get("command", []), *service.get("entrypoint", [])]:
            if SECRET_NAME.search(argument) or PASSWORD_IN_URL.search(argument):
                yield f"{name}: has a secret on its command line"
    for config, content in compose.get("configs", {}).items():
        if re.search(r"(password|secret)\w*:\s*(?!\{env:)\S", content.get("content", ""), re.IGNORECASE):
            yield f"configs: {config} contains a secret in plain text"


def health(compose: Compose) -> Iterator[str]:
    """Yield long-running services without a memory limit, or without a health check as their clients would connect.

    The health check must run without a shell and address the service by its own name.
    """
    for name, service in compose["services"].items():
        if service["restart"] == "no":
            continue
        test = service.get("healthcheck", {}).get("test", ["NONE"])
        if test[0] != "CMD":
            yield f"{name}: has no health check, or one that needs a shell"
        for argument in test[1:]:
            host = re.search(r"https?://([^:/]+)", argument)
            if (host and host[1] != name) or argument in ("localhost", "127.0.0.1"):
                yield f"{name}: its health check does not use the name of the service: {argument}"
        if "mem_limit" not in service:
            yield f"{name}: has no memory limit"


def limits(compose: Compose) -> Iterator[str]:
    """Yield services whose processes, CPUs or log have no limit."""
    for name, service in compose["services"].items():
        if "pids_limit" not in service:
            yield f"{name}: has no limit of processes"
        if "cpus" not in service:
            yield f"{name}: has no limit of CPUs"
        if not {"max-size", "max-file"} <= service.get("logging", {}).get("options", {}).keys():
            yield f"{name}: its log may fill the disk"


def read_only(compose: Compose) -> Iterator[str]:
    """Yield services that may change files outside their volumes, and mounts that only the code server may write to."""
    for name, service in compose["services"].items():
        if service.get("read_only") is not True:
            yield f"{name}: may change its own files"
        targets = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[1:] for volume in service.get("volumes", [])]
        if "/tmp" not in [*service.get("tmpfs", []), *(target[0] for target in targets)]:
            yield f"{name}: has no folder for temporary files"
        for target, *options in targets:
            writer = "code-server" if target == "/data" else None
            if target in ("/data", "/datasets") and name not in ("s3", writer) and options != ["ro"]:
                yield f"{name}: may write to {target}"


def privileges(compose: Compose) -> Iterator[str]:
    """Yield services that may gain privileges, keep any capability, or run as root or as whom their image says."""
    for name, service in compose["services"].items():
        if "no-new-privileges:true" not in service.get("security_opt", []) or service.get("privileged"):
            yield f"{name}: may gain privileges"
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")):
            yield f"{name}: runs as the user of its image, or as root"
        if service.get("cap_drop") != ["ALL"]:
            yield f"{name}: keeps capabilities"
        if "cap_add" in service or service.get("user") in ("root", "0"):
            yield f"{name}: requests privileges"


def allowed_hosts(compose: Compose) -> Iterator[str]:
    """Yield clients of MLflow whose host name it would refuse; /health would succeed even then."""
    command = compose["services"]["mlflow"]["command"]
    option = next(argument for argument in command if argument.startswith("--allowed-hosts="))
    allowed = option.split("=", 1)[1].split(",")
    for name, service in compose["services"].items():
        uri = service.get("environment", {}).get("MLFLOW_TRACKING_URI")
        if uri and uri.removeprefix("http://") not in allowed:
            yield f"{name}: connects to {uri}, a host name that MLflow refuses"
    if "*" in allowed:
        yield "mlflow: accepts any host name, and so requests from any web page in a browser"
