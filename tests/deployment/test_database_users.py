"""Dagster and MLflow each have a database of their own, and no more rights in PostgreSQL than they need."""

from collections.abc import Iterator

import pytest

from tests.deployment import compose_file
from tests.deployment.stack import Stack, running

pytestmark = pytest.mark.slow

PASSWORDS = {
    "dagster": compose_file.SECRETS["DAGSTER_DB_PASSWORD"],
    "mlflow": compose_file.SECRETS["MLFLOW_DB_PASSWORD"],
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """PostgreSQL alone, with the databases and users of the compose file."""
    with running() as stack:
        stack.create_databases()
        yield stack


def answer(stack: Stack, user: str, database: str, statement: str) -> str:
    """Return what psql prints for a statement, or its error."""
    url = f"postgresql://{user}:{PASSWORDS[user]}@postgres:5432/{database}"
    result = stack.execute("mlflow", "psql", url, "-At", "-c", statement)
    return result.stdout.strip() if result.returncode == 0 else result.stderr


@pytest.mark.parametrize(("user", "other"), [("dagster", "mlflow"), ("mlflow", "dagster")])
def test_a_user_has_its_own_database_only(stack: Stack, user: str, other: str) -> None:
    """It may make tables there, and may open neither the other database nor the administrator's."""
    assert answer(stack, user, user, "CREATE TABLE mine (x int); SELECT count(*) FROM mine") == "CREATE TABLE\n0"
    for database in (other, "postgres"):
        assert f'permission denied for database "{database}"' in answer(stack, user, database, "SELECT 1")


@pytest.mark.parametrize("user", PASSWORDS)
def test_a_user_has_no_rights_on_the_server(stack: Stack, user: str) -> None:
    """It is no superuser, makes no users and databases, and reads no files of the server."""
    rights = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
    assert answer(stack, user, user, f"SELECT {rights} FROM pg_roles WHERE rolname = current_user") == "f|f|f|f|f"
    for statement in ("CREATE ROLE another", "CREATE DATABASE another", "SELECT pg_read_file('/etc/passwd')"):
        assert "permission denied" in answer(stack, user, user, statement)


def test_a_password_is_required(stack: Stack) -> None:
    """A user connects only with its own password from `.env`."""
    wrong = f"postgresql://dagster:{PASSWORDS['mlflow']}@postgres:5432/dagster"
    assert "password authentication failed" in stack.execute("mlflow", "psql", wrong, "-c", "SELECT 1").stderr
