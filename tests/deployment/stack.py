"""Runs the services of docker-compose.yml as plain processes, without Docker.

The services have the commands, names, ports and health checks of the file. They share a network namespace and a mount
namespace, in which the names of the services resolve to loopback, so ports in use on the host do not matter and no
other host can be reached. Each service is the first process of a PID namespace, so killing it also kills everything
that it started, as with a container.

As in the file, the services of this project's images can write to their volumes only, and the databases and their users
are made by the file's own script. There are five differences: volumes are subfolders of a temporary folder, every
service is root and reaches all others, PostgreSQL is the one installed on the host, moto replaces SeaweedFS, and
Dagster looks for dead runs more often, so that a test waits less. Both stores use the ports and the secrets of the
file.
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
# How often Dagster looks for dead runs: in the file, and here.
POLL_INTERVALS = ("poll_interval_seconds: 30", "poll_interval_seconds: 5")
_REQUEST = """
import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
request = urllib.request.Request(sys.argv[1], data, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""
# Makes all files read-only but some folders, for the rest of a command. The arguments are the folder of the stack, the
# folders to write to, `--`, and the command.
_READ_ONLY = """
stack=$1; shift
while [ "$1" != -- ]; do mount --bind "$1" "$1" || exit; shift; done
shift
mount --rbind "$stack" "$stack" && mount -o remount,bind,ro "$stack" && mount -o remount,bind,ro / && exec "$@"
"""
_MAKE_BUCKET = """
import boto3, os
boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]).create_bucket(Bucket="mlflow")
"""
_COPY_BUCKET = """
import boto3, os, pathlib, sys
s3 = boto3.resource("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
direction, folder, bucket = sys.argv[1], pathlib.Path(sys.argv[2]), s3.Bucket("mlflow")
if direction == "download":
    for stored in bucket.objects.all():
        (folder / stored.key).parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(stored.key, str(folder / stored.key))
else:
    bucket.create()
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), path.relative_to(folder).as_posix())
"""


class Stack:
    """The services, in the namespaces that `running` created.

    Args:
        folder: an empty folder for volumes, logs and data.
        anchor: ID of the process that holds the namespaces open.
    """

    dataset = "tiny"

    def __init__(self, folder: Path, anchor: int) -> None:
        self.folder = folder
        self.compose = compose_file.substitute(
            compose_file.read(), compose_file.SECRETS | {"MACREC_SERVE": self.dataset}
        )
        self._enter = ["nsenter", f"--net=/proc/{anchor}/ns/net", f"--mount=/proc/{anchor}/ns/mnt"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self) -> None:
        """Create the folders and configs that the containers would have, and initialize PostgreSQL's data folder."""
        for name in ("app", "data", "datasets", "opt/dagster/storage", "state", "logs", "home/.cache"):
            (self.folder / name).mkdir(parents=True)
        for service in self.compose["services"]:
            (self.folder / "tmp" / service).mkdir(parents=True)
        shutil.copy(compose_file.ROOT / "deployment" / "probe.py", self.folder / "app")
        for config in self.compose["services"]["code-server"]["configs"]:
            text = self.compose["configs"][config["source"]]["content"].replace(*POLL_INTERVALS)
            Path(self._inside(config["target"])).write_text(text, encoding="utf-8")
        data = self.folder / "postgres"
        data.mkdir()
        shutil.chown(data, "postgres")
        password = self.folder / "password"
        password.write_text(self.compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"], encoding="utf-8")
        options = [
            "-D",
            str(data),
            "-U",
            "macrec",
            "--pwfile",
            str(password),
            "-A",
            "scram-sha-256",
            "-N",
            "-E",
            "UTF8",
        ]
        subprocess.run([*_as_postgres("initdb"), *options], check=True, capture_output=True, cwd=data)

    def create_stores(self) -> None:
        """Start PostgreSQL and the S3 store, and create the databases and the bucket as the containers do initially."""
        self.create_databases()
        self.start("s3")
        self.execute("mlflow", sys.executable, "-c", _MAKE_BUCKET, check=True)

    def create_databases(self) -> None:
        """Start PostgreSQL, and let the script of the compose file create the databases and their users."""
        self._launch("postgres")
        deadline = time.monotonic() + START_SECONDS
        while self.execute("postgres", "pg_isready", "-h", "postgres").returncode and time.monotonic() < deadline:
            time.sleep(0.5)
        database = self.compose["services"]["postgres"]["environment"]["POSTGRES_DB"]
        self.psql(f"CREATE DATABASE {database}")
        script = self.folder / "create-databases.sql"
        script.write_text(self.compose["configs"]["create-databases"]["content"], encoding="utf-8")
        command = self.client_command("psql", database)
        self.execute("postgres", *command, "-v", "ON_ERROR_STOP=1", "-f", str(script), check=True)
        self.wait_until_healthy("postgres")

    def psql(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement as the owner of the databases, and return what it prints."""
        return self.execute(
            "postgres", *self.client_command("psql", database), "-At", "-c", statement, check=True
        ).stdout

    def client_command(self, program: str, name: str) -> tuple[str, ...]:
        """Return the command line of psql, pg_dump or pg_restore for a database."""
        return (program, "-h", "postgres", "-U", "macrec", "-d", name)

    def copy_bucket(self, direction: str, folder: Path) -> None:
        """Download the bucket of artifacts into a folder, or create the bucket and upload a folder into it.

        Args:
            direction: "download" or "upload".
            folder: where the files are written to or read from.
        """
        self.execute("mlflow", sys.executable, "-c", _COPY_BUCKET, direction, str(folder), check=True)

    def start(self, *services: str) -> None:
        """Start services and wait until their health checks pass."""
        for service in services:
            self._launch(service)
        for service in services:
            self.wait_until_healthy(service)

    def kill(self, *services: str) -> None:
        """Send SIGKILL to services and to all processes that they started."""
        for service in services:
            process = self._processes.pop(service)
            process.kill()
            process.wait()

    def restart(self, *services: str) -> None:
        """Kill services, start them again and wait until they are healthy."""
        self.kill(*services)
        self.start(*services)

    def kill_all(self) -> None:
        self.kill(*self._processes)

    def freeze(self, service: str, seconds: float) -> None:
        """Suspend a service for some seconds, in which it accepts connections but does not respond."""
        group = os.getpgid(self._processes[service].pid)
        os.killpg(group, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(group, signal.SIGCONT)

    def wait_until_healthy(self, service: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (check := self.health(service)).returncode:
            status = self._processes[service].poll()
            if status is not None or time.monotonic() > deadline:
                pytest.fail(f"{service} ({status=}): {check.stdout}{check.stderr}\n{self.log(service)[-3000:]}")
            time.sleep(1)  # some checks import Dagster, so checking more often would slow the start down

    def health(self, service: str) -> "subprocess.CompletedProcess[str]":
        """Run the health check of the compose file once."""
        if service == "s3":
            return self.execute("mlflow", sys.executable, "-c", _REQUEST, "http://s3:8333/moto-api/")
        return self.execute(service, *self.compose["services"][service]["healthcheck"]["test"][1:])

    def execute(self, service: str, *command: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run a command with the environment of a service, as `docker compose exec` does."""
        arguments = [*self._enter, f"--wd={self.folder / 'app'}", *map(self._inside, command)]
        environment = self._environment(service)
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=check)

    def request(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a GET request, or a POST of a JSON body, from inside the namespaces; return the parsed response."""
        arguments = [url] if body is None else [url, json.dumps(body)]
        for _ in range(4):  # the first request over a connection that PostgreSQL has dropped fails
            result = self.execute("mlflow", sys.executable, "-I", "-S", "-c", _REQUEST, *arguments)
            if result.returncode == 0:
                return json.loads(result.stdout)
            time.sleep(1)
        pytest.fail(f"{url}: {result.stderr[-500:]}")

    def log(self, service: str) -> str:
        return (self.folder / "logs" / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def _launch(self, service: str) -> None:
        with (self.folder / "logs" / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                # The first process of a PID namespace: when it ends, the kernel kills all others.
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
            command = [self._inside(argument) for argument in self.compose["services"][service]["command"]]
            wrapper = [*wrapper, "sh", "-c", _READ_ONLY, "sh", str(self.folder), *self._writable(service), "--"]
        return [*self._enter, f"--wd={self.folder / 'app'}", *wrapper, *command]

    def _writable(self, service: str) -> list[str]:
        """Return the folders that a service may write to according to the compose file."""
        definition = self.compose["services"][service]
        volumes = [volume.split(":") for volume in definition.get("volumes", [])]
        targets = [volume[1] for volume in volumes if volume[2:] != ["ro"]] + definition.get("tmpfs", [])
        places = {"/tmp": f"{self.folder}/tmp/{service}", "/home/macrec/.cache": f"{self.folder}/home/.cache"}
        return [places.get(target) or self._inside(target) for target in targets]

    def _environment(self, service: str) -> dict[str, str]:
        variables = self.compose["services"][service]["environment"]
        host_environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(compose_file.ROOT),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp" / service),
            "OMP_NUM_THREADS": "1",
        }
        return host_environment | {name: self._inside(value) for name, value in variables.items()}

    def _inside(self, text: str) -> str:
        """Replace the container paths in a text by paths in the temporary folder."""
        return PATHS.sub(lambda match: f"{self.folder}/{match[1]}", text)


@contextmanager
def running() -> Iterator[Stack]:
    """Yield a stack with namespaces in which no service runs yet; all services are killed when the block ends."""
    _skip_if_unsupported()
    # pytest's temporary folder is readable by its owner only, but PostgreSQL runs as another user.
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
            if (line := anchor.stdout.readline().strip()) != "ready":
                pytest.skip(f"cannot create namespaces: {line}")
            stack = Stack(folder, anchor.pid)
            try:
                stack.prepare()
                yield stack
            finally:
                stack.kill_all()
        finally:
            anchor.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _skip_if_unsupported() -> None:
    for module in ("psycopg2", "dagster_postgres", "boto3", "moto"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root may create the namespaces in which the services run")
    if missing := [name for name in ("unshare", "nsenter", "ip", "runuser", "psql") if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not _binary("postgres"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def _binary(name: str) -> str | None:
    paths = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(paths[-1]) if paths else shutil.which(name)


def _as_postgres(name: str) -> list[str]:
    # PostgreSQL refuses to run as root.
    return ["runuser", "-u", "postgres", "--", str(_binary(name))]
