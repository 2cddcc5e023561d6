"""What the Compose specification does not ask for: whether the stack is whole, pinned, private and watched.

`problems` takes the file as it stands, variables unfilled, and gives one line a fault.
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
    """All faults of a compose file."""
    checks = (dependencies, references, images, ports, secrets, health, privileges, allowed_hosts)
    return [line for check in checks for line in check(compose)]


def dependencies(compose: Compose) -> Iterator[str]:
    """A service waits for services that exist, until they are healthy, or have done their work."""
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how.get("condition")
            if other not in services:
                yield f"{name}: depends on {other}, which does not exist"
            elif condition == "service_healthy":
                if "healthcheck" not in services[other]:
                    yield f"{name}: waits until {other} is healthy, which nothing checks"
            elif condition == "service_completed_successfully":
                if services[other]["restart"] != "no":
                    yield f"{name}: waits for the end of {other}, which is restarted"
            else:
                yield f"{name}: waits for {other} to be {condition}, not until it is healthy"


def references(compose: Compose) -> Iterator[str]:
    """Volumes and configs that are used are declared, and those that are declared are used."""
    used: dict[str, set[str]] = {"volumes": set(), "configs": set()}
    for name, service in compose["services"].items():
        used["configs"] |= {config["source"] for config in service.get("configs", [])}
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith(("/", "~")):
                yield f"{name}: mounts {source} of the machine"
            elif not source.startswith("."):
                used["volumes"].add(source)
    for kind, names in used.items():
        declared = set(compose.get(kind, {}))
        yield from (f"{kind}: {name} is used but not declared" for name in sorted(names - declared))
        yield from (f"{kind}: {name} is declared but not used" for name in sorted(declared - names))


def images(compose: Compose) -> Iterator[str]:
    """An image from elsewhere names its version, down to the minor one; the others are built here."""
    built = {service["image"] for service in compose["services"].values() if "build" in service}
    for name, service in compose["services"].items():
        image = service.get("image", "")
        if image not in built and not PINNED.fullmatch(image):
            yield f"{name}: the image {image} is not pinned"


def ports(compose: Compose) -> Iterator[str]:
    """Nothing asks for a password, so nothing is published on another address than loopback."""
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not isinstance(port, str) or not LOOPBACK_PORT.fullmatch(port):
                yield f"{name}: the port {port} is not on loopback"
        if "network_mode" in service:
            yield f"{name}: is on the network of the machine"


def secrets(compose: Compose) -> Iterator[str]:
    """Secrets are asked for, have no default, and stand on no command line."""
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAME.search(variable) and not REQUIRED.fullmatch(str(value)):
                yield f"{name}: {variable} is not a required variable"
            found = PASSWORD_IN_URL.search(str(value))
            if found and not REQUIRED.fullmatch(found["password"]):
                yield f"{name}: {variable} holds a password in clear"
        for word in [*service.get("command", []), *service.get("entrypoint", [])]:
            if SECRET_NAME.search(word) or PASSWORD_IN_URL.search(word):
                yield f"{name}: a secret on the command line"
    for config, content in compose.get("configs", {}).items():
        if re.search(r"(password|secret)\w*:\s*(?!\{env:)\S", content.get("content", ""), re.IGNORECASE):
            yield f"configs: {config} holds a secret in clear"


def health(compose: Compose) -> Iterator[str]:
    """What lasts is watched, without a shell, and asked by the name that others ask it by."""
    for name, service in compose["services"].items():
        if service["restart"] == "no":
            continue
        test = service.get("healthcheck", {}).get("test", ["NONE"])
        if test[0] != "CMD":
            yield f"{name}: no health check, or one in a shell"
        for word in test[1:]:
            host = re.search(r"https?://([^:/]+)", word)
            if (host and host[1] != name) or word in ("localhost", "127.0.0.1"):
                yield f"{name}: its health check does not ask by its own name: {word}"
        if "mem_limit" not in service:
            yield f"{name}: no memory limit"


def privileges(compose: Compose) -> Iterator[str]:
    """No service may gain privileges; what is built here has none at all."""
    for name, service in compose["services"].items():
        if "no-new-privileges:true" not in service.get("security_opt", []) or service.get("privileged"):
            yield f"{name}: may gain privileges"
        if service["image"].endswith(":local") and service.get("cap_drop") != ["ALL"]:
            yield f"{name}: keeps capabilities"
        if "cap_add" in service or service.get("user") in ("root", "0"):
            yield f"{name}: asks for privileges"


def allowed_hosts(compose: Compose) -> Iterator[str]:
    """MLflow answers to the name by which its clients call it: it refuses others while /health stays green."""
    server = next(word for word in compose["services"]["mlflow"]["command"] if word.startswith("--allowed-hosts="))
    allowed = server.split("=", 1)[1].split(",")
    for name, service in compose["services"].items():
        uri = service.get("environment", {}).get("MLFLOW_TRACKING_URI")
        if uri and uri.removeprefix("http://") not in allowed:
            yield f"{name}: calls {uri}, which MLflow refuses"
    if "*" in allowed:
        yield "mlflow: answers to any host name, so to any web page that a person has open"
