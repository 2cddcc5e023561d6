"""Reads docker-compose.yml as Compose does: resolves merge keys and replaces variables by their values."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "POSTGRES_PASSWORD": "0a1b2c",
    "DAGSTER_DB_PASSWORD": "3d4e5f",
    "MLFLOW_DB_PASSWORD": "6a7b8c",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "hidden",
}
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}")


def read(name: str = "docker-compose.yml") -> dict[str, Any]:
    """Return the parsed file, with variables not yet replaced."""
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def substitute(value: Any, variables: dict[str, str]) -> Any:
    """Return the tree with its variables replaced. Raise KeyError with the message of `${NAME:?message}`."""
    if isinstance(value, dict):
        return {key: substitute(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [substitute(each, variables) for each in value]
    return _VARIABLE.sub(lambda match: _value(match, variables), value) if isinstance(value, str) else value


def variables_of(value: Any) -> dict[str, str | None]:
    """Return the operator of each variable in a tree: name -> `:-` (default), `:?` (required) or None."""
    return {match["name"]: match["operator"] for match in _VARIABLE.finditer(yaml.safe_dump(value, width=10_000))}


def example_settings() -> dict[str, str]:
    """Return the variables that .env.example sets."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _value(match: re.Match[str], variables: dict[str, str]) -> str:
    if value := variables.get(match["name"]):
        return value
    if match["operator"] == ":?":
        raise KeyError(f"{match['name']}: {match['rest']}")
    return match["rest"] or ""
