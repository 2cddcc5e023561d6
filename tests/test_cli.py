"""The `macrec` command: what a person sees when something is wrong, and what the help says."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from macrec_pipeline import __version__
from macrec_pipeline.cli import main


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and data in the test's own folder, whatever the environment says."""
    for name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MACREC_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MACREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACREC_DATA", str(tmp_path / "data"))


def _ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope"], ["no data set 'nope'", "demo", "movielens-100k"]),
        (["run", "../demo"], ["no data set"]),
        (["run", "movielens-100k"], ["movielens-100k", "u.data", "not there", "MACREC_DATA"]),
        (["run", "demo", "--set", "recommender.num_epoch=3"], ["recommender.num_epoch"]),
        (["run", "demo", "--set", "recommender.num_epochs=many"], ["recommender.num_epochs", "many"]),
        (["run", "demo", "--set", "seed"], ["--set", "seed=7"]),
        (["run", "demo", "--until", "a", "--only", "b"], ["--until and --only"]),
        (["run", "demo", "--until", "recomender"], ["no asset 'recomender'", "recommender"]),
        (["run"], ["DATASET"]),
        (["run", "demo", "--nope"], ["--nope"]),
        (["nope"], ["nope"]),
        (["refresh", "nope"], ["no data set 'nope'"]),
        (["refresh", "demo", "--set", "seed=many"], ["seed", "many"]),
        (["recommend-all", "nope"], ["no data set 'nope'"]),
        (["recommend-all", "demo", "--set", "recommendations.top_k=0"], ["recommendations.top_k"]),
        (["recommend-all", "demo", "--set", "recommendations.model=@x"], ["recommendations.model", "@x"]),
        (["recommend", "--model", "macrec-demo", "--history", "a"], ["models:/NAME@ALIAS"]),
        (["recommend", "--model", "models:/macrec-demo@champion", "--history", "a"], ["macrec run"]),
        (["recommend", "--model", "models:/m/1", "--history", "a", "-k", "0"], ["-k"]),
        (["recommend", "--model", "models:/m/1", "--history", "a", "--route", "up"], ["fused"]),
        (["evaluate-champion", "nope"], ["no data set 'nope'"]),
        (["evaluate-champion", "movielens-100k"], ["movielens-100k", "u.data", "not there"]),
        (["ui", "--port", "0"], ["--port"]),
        (["datasets", "validate", "nope"], ["nope"]),
    ],
)
def test_a_wrong_argument_ends_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person did wrong is told in one line that names it, with exit status 2 and never a traceback."""
    status, out, err = _ask(capsys, *arguments)
    told = err if "validate" not in arguments else out
    assert status == 2
    for word in words:
        assert word in told
    if "validate" not in arguments:
        assert err.startswith("macrec: ")
        assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_home_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state folder may be a file, or lie on a read-only disk; both are the person's to mend."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    status, _, err = _ask(capsys, "run", "demo", "--home", str(tmp_path / "file" / "home"))
    assert status == 2
    assert "cannot be written" in err
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


def test_a_taken_port_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that something else listens on is named, with the option that chooses another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = _ask(capsys, "ui", "--port", str(port))
    assert status == 2
    assert f"Port {port} " in err
    assert "--port" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_shows_commands_and_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A person who knows nothing sees every command and can copy an example."""
    status, out, err = _ask(capsys, *arguments)
    assert (status, err) == (0, "")
    made = ("run", "refresh", "backtest", "recommend-all", "evaluate-champion")
    commands = (*made, "datasets", "recommend", "promote", "rollback", "ui")
    for words in (*commands, "Examples", "macrec run demo", "--version"):
        assert words in out


@pytest.mark.parametrize(
    "command", ["run", "refresh", "backtest", "recommend", "recommend-all", "evaluate-champion", "ui", "datasets"]
)
def test_every_command_explains_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command says what it does; those with a home and a data folder name their environment variables."""
    status, out, _ = _ask(capsys, command, "--help")
    assert status == 0
    if command != "datasets":
        assert "MACREC_HOME" in out
        assert "MACREC_DATA" in out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` says the version and nothing else."""
    assert _ask(capsys, "--version") == (0, f"macrec {__version__}\n", "")


def test_data_sets_are_listed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain `datasets` lists all of them; `validate` says which are ready, and fails for one that is not."""
    status, out, _ = _ask(capsys, "datasets")
    assert status == 0
    for name in ("demo", "movielens-100k", "amazon-instruments"):
        assert name in out
    assert _ask(capsys, "datasets", "list")[1] == out
    assert _ask(capsys, "datasets", "validate", "demo")[:2] == (0, "demo: ready\n")
    status, out, _ = _ask(capsys, "datasets", "validate")
    assert status == 2
    assert "demo: ready" in out
    assert "u.data" in out


def test_the_help_is_quick() -> None:
    """Help and errors do not wait for torch, MLflow or Dagster to be imported."""
    code = (
        "import sys\nfrom macrec_pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'mlflow', 'dagster', 'transformers', 'polars', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
