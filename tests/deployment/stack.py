"""The services of docker-compose.yml as processes: their very commands, names, ports and health checks, but no Docker.

All live in a network and a mount namespace of their own, where the services' names are addresses of loopback: ports
that are taken on the machine do not matter, and nothing outside can be reached. Each service is the first process of a
process namespace, so killing it takes everything that it started along, as with a container.

What is not as in the file: paths of volumes lie in a scratch folder, PostgreSQL is the machine's own, and moto stands
in for SeaweedFS; both of these get the file's secrets and keep its ports.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import compose_file

PATHS = re.compile(r"(?<![\w/.])/(opt/dagster|state|datasets|data|app)\b")
NAMES = ("postgres", "s3", "mlflow", "code-server", "webserver", "daemon", "champion")
START_SECONDS = 240
_ASK = """
import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
request = urllib.request.Request(sys.argv[1], data, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""
_MAKE_BUCKET = """
import boto3, os
boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]).create_bucket(Bucket="mlflow")
"""
_COPY_BUCKET = """
import boto3, os, pathlib, sys
s3 = boto3.resource("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
way, folder, bucket = sys.argv[1], pathlib.Path(sys.argv[2]), s3.Bucket("mlflow")
if way == "download":
    for item in bucket.objects.all():
        (folder / item.key).parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(item.key, str(folder / item.key))
else:
    bucket.create()
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), path.relative_to(folder).as_posix())
"""


class Stack:
    """The services, in a namespace that `running` has made."""

    model = "models:/macrec-tiny@champion"

    def __init__(self, folder: Path, anchor: int) -> None:
        self.folder = folder
        self.compose = compose_file.filled(compose_file.read(), compose_file.SECRETS | {"MACREC_MODEL": self.model})
        self._enter = ["nsenter", f"--net=/proc/{anchor}/ns/net", f"--mount=/proc/{anchor}/ns/mnt"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self) -> None:
        """Make the folders and configs that the containers would find, and PostgreSQL's data folder."""
        for name in ("app", "data", "datasets", "opt/dagster/storage", "state", "logs", "home"):
            (self.folder / name).mkdir(parents=True)
        shutil.copy(compose_file.ROOT / "deployment" / "probe.py", self.folder / "app")
        for config in self.compose["services"]["code-server"]["configs"]:
            text = self.compose["configs"][config["source"]]["content"]
            Path(self._inside(config["target"])).write_text(text, encoding="utf-8")
        data = self.folder / "postgres"
        data.mkdir()
        shutil.chown(data, "postgres")
        secret = self.folder / "password"
        secret.write_text(self.compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"], encoding="utf-8")
        options = ["-D", str(data), "-U", "macrec", "--pwfile", str(secret), "-A", "scram-sha-256", "-N", "-E", "UTF8"]
        subprocess.run([*_as_postgres("initdb"), *options], check=True, capture_output=True, cwd=data)

    def make_stores(self) -> None:
        """Start PostgreSQL and the S3 store, and make what their images make at the first start."""
        self._launch("postgres")
        deadline = time.monotonic() + START_SECONDS
        while self.execute("postgres", "pg_isready", "-h", "postgres").returncode and time.monotonic() < deadline:
            time.sleep(0.5)
        first = self.compose["services"]["postgres"]["environment"]["POSTGRES_DB"]
        for statement in (f"CREATE DATABASE {first}", self.compose["configs"]["create-databases"]["content"]):
            self.psql(statement)
        self.wait_until_healthy("postgres")
        self.start("s3")
        self.execute("mlflow", sys.executable, "-c", _MAKE_BUCKET, check=True)

    def psql(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement as the owner of the databases; what it prints."""
        return self.execute("postgres", *self.database("psql", database), "-At", "-c", statement, check=True).stdout

    def database(self, program: str, name: str) -> tuple[str, ...]:
        """The words of psql, pg_dump or pg_restore for a database."""
        return (program, "-h", "postgres", "-U", "macrec", "-d", name)

    def copy_bucket(self, way: str, folder: Path) -> None:
        """`download` the bucket of artifacts into a folder, or `upload` a folder into a new bucket."""
        self.execute("mlflow", sys.executable, "-c", _COPY_BUCKET, way, str(folder), check=True)

    def start(self, *services: str) -> None:
        """Start services and wait until their health checks pass."""
        for service in services:
            self._launch(service)
        for service in services:
            self.wait_until_healthy(service)

    def kill(self, *services: str) -> None:
        """SIGKILL to a service and to all that it started."""
        for service in services:
            process = self._processes.pop(service)
            process.kill()
            process.wait()

    def restart(self, *services: str) -> None:
        """Kill services, start them anew and wait until they are healthy."""
        self.kill(*services)
        self.start(*services)

    def kill_all(self) -> None:
        self.kill(*self._processes)

    def freeze(self, service: str, seconds: float) -> None:
        """Let a service hang: it takes connections and answers none."""
        group = os.getpgid(self._processes[service].pid)
        os.killpg(group, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(group, signal.SIGCONT)

    def wait_until_healthy(self, service: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (found := self.health(service)).returncode:
            status = self._processes[service].poll()
            if status is not None or time.monotonic() > deadline:
                pytest.fail(f"{service} ({status=}): {found.stdout}{found.stderr}\n{self.log(service)[-3000:]}")
            time.sleep(3)  # some of the checks load Dagster, which takes longer than what they wait for

    def health(self, service: str) -> "subprocess.CompletedProcess[str]":
        """Ask once whether a service is healthy, by the check of the compose file."""
        if service == "s3":
            return self.execute("mlflow", sys.executable, "-c", _ASK, "http://s3:8333/moto-api/")
        return self.execute(service, *self.compose["services"][service]["healthcheck"]["test"][1:])

    def execute(self, service: str, *command: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run a command with the environment of a service, as `docker compose exec` does."""
        words = [*self._enter, f"--wd={self.folder / 'app'}", *map(self._inside, command)]
        environment = self._environment(service)
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=check)

    def ask(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """GET, or POST of a JSON body, from inside; the decoded answer."""
        arguments = [url] if body is None else [url, json.dumps(body)]
        for _ in range(4):  # the first request over a connection that PostgreSQL has dropped fails
            answer = self.execute("mlflow", sys.executable, "-I", "-S", "-c", _ASK, *arguments)
            if answer.returncode == 0:
                return json.loads(answer.stdout)
            time.sleep(1)
        pytest.fail(f"{url}: {answer.stderr[-500:]}")

    def log(self, service: str) -> str:
        return (self.folder / "logs" / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def _launch(self, service: str) -> None:
        with (self.folder / "logs" / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                # The first process of a namespace of processes: its end is the end of all.
                self._command(service, ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(service),
                start_new_session=True,
            )

    def _command(self, service: str, wrapper: Sequence[str]) -> list[str]:
        if service == "postgres":
            command = [*_as_postgres("postgres"), "-D", str(self.folder / "postgres"), "-h", "0.0.0.0", "-F"]
            command += ["-k", str(self.folder / "postgres")]
        elif service == "s3":
            command = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "8333"]
        else:
            command = [self._inside(word) for word in self.compose["services"][service]["command"]]
        return [*self._enter, f"--wd={self.folder / 'app'}", *wrapper, *command]

    def _environment(self, service: str) -> dict[str, str]:
        given = {name: self._inside(value) for name, value in self.compose["services"][service]["environment"].items()}
        own = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(compose_file.ROOT),
            "HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        return own | given

    def _inside(self, text: str) -> str:
        return PATHS.sub(lambda found: f"{self.folder}/{found[1]}", text)


@contextmanager
def running() -> Iterator[Stack]:
    """A stack whose namespace exists and in which nothing runs yet; all of it ends with the block."""
    _require_what_it_needs()
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="macrec-stack-"))
    folder.chmod(0o755)
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(NAMES)}\n", encoding="utf-8")
    script = f"ip link set lo up && mount --bind {hosts} /etc/hosts && echo ready && exec sleep infinity"
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as anchor:
        try:
            assert anchor.stdout is not None
            if (said := anchor.stdout.readline().strip()) != "ready":
                pytest.skip(f"no namespaces can be made here: {said}")
            stack = Stack(folder, anchor.pid)
            try:
                stack.prepare()
                yield stack
            finally:
                stack.kill_all()
        finally:
            anchor.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _require_what_it_needs() -> None:
    for module in ("psycopg2", "dagster_postgres", "boto3", "moto"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root may make the namespaces in which the services run")
    if missing := [name for name in ("unshare", "nsenter", "ip", "runuser", "psql") if not shutil.which(name)]:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    if not _binary("postgres"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _as_postgres(name: str) -> list[str]:
    # PostgreSQL refuses to run as root.
    return ["runuser", "-u", "postgres", "--", str(_binary(name))]
