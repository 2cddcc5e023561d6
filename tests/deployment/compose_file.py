"""docker-compose.yml as Compose reads it: merge keys resolved, variables filled in."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"POSTGRES_PASSWORD": "0a1b2c", "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": "hidden"}
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\}")


def read(name: str = "docker-compose.yml") -> dict[str, Any]:
    """The file as it stands, variables unfilled."""
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def filled(value: Any, variables: dict[str, str]) -> Any:
    """The same tree with its variables filled in. Raises KeyError, with the message of `${NAME:?message}`."""
    if isinstance(value, dict):
        return {key: filled(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    return _VARIABLE.sub(lambda found: _value(found, variables), value) if isinstance(value, str) else value


def variables_of(value: Any) -> dict[str, str | None]:
    """The variables in a tree: name -> `:-`, `:?` or None, however it is asked for."""
    return {found["name"]: found["how"] for found in _VARIABLE.finditer(yaml.safe_dump(value, width=10_000))}


def example_settings() -> dict[str, str]:
    """What .env.example sets."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    if value := variables.get(found["name"]):
        return value
    if found["how"] == ":?":
        raise KeyError(f"{found['name']}: {found['rest']}")
    return found["rest"] or ""
