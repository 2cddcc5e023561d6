"""The `macrec` command: its help, its error messages, its exit status and its shell completion."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from macrec_pipeline import __version__
from macrec_pipeline.cli import application, main
from macrec_pipeline.cli.completion import ASSETS
from macrec_pipeline.config.reference import all_settings
from macrec_pipeline.datasets import dataset_names

COMMANDS = (
    "run",
    "refresh",
    "backtest",
    "recommend",
    "similar",
    "recommend-all",
    "prune",
    "evaluate-champion",
    "promote",
    "rollback",
    "settings",
    "ui",
    "datasets",
    "datasets list",
    "datasets new",
    "datasets validate",
    "fetch",
    "fetch images",
)


@pytest.fixture(autouse=True)
def _temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home and data in the test's own folder, whatever the environment says."""
    for name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MACREC_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MACREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACREC_DATA", str(tmp_path / "data"))


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope"], ["no data set 'nope'", "demo", "movielens-100k"]),
        (["run", "dmo"], ["Did you mean `demo`?"]),
        (["run", "../demo"], ["no data set"]),
        (["run", "movielens-100k"], ["movielens-100k", "u.data", "does not exist", "MACREC_DATA"]),
        (
            ["run", "demo", "--set", "recommender.num_epoch=3"],
            ["`recommender.num_epoch`. Did you mean `recommender.num_epochs`?"],
        ),
        (["run", "demo", "--set", "recomender.num_epochs=3"], ["`recomender`. Did you mean `recommender`?"]),
        (["run", "demo", "--set", "recommender.num_epochs=many"], ["`recommender.num_epochs`", "at least 1", "'many'"]),
        (["run", "demo", "--set", "seed"], ["'seed'", "SECTION.SETTING=VALUE", "--set seed=7"]),
        (["run", "demo", "--until", "a", "--only", "b"], ["--until and --only"]),
        (["run", "demo", "--until", "recomender"], ["`recomender`. Did you mean `recommender`?"]),
        (["run"], ["DATASET"]),
        (["run", "demo", "--nope"], ["--nope", "macrec run --help"]),
        (["run", "demo", "--untl", "items"], ["no option --untl", "Did you mean `--until`?"]),
        (["run", "demo", "--only"], ["--only", "argument"]),
        (["run", "demo", "--resume", "--set", "seed=7"], ["--resume", "leave out --set"]),
        (["nope"], ["nope", "macrec --help"]),
        (["rum"], ["Did you mean 'run'?"]),
        (["datasets", "lst"], ["Did you mean 'list'?"]),
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
        (["evaluate-champion", "movielens-100k"], ["movielens-100k", "u.data", "does not exist"]),
        (["ui", "--port", "0"], ["--port"]),
        (["datasets", "validate", "nope"], ["nope"]),
    ],
)
def test_a_wrong_argument_ends_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake of the user is one line that names it, with exit status 2 and without a traceback."""
    status, out, err = _run(capsys, *arguments)
    message = err if "validate" not in arguments else out
    assert status == 2
    for word in words:
        assert word in message
    if "validate" not in arguments:
        assert err.startswith("macrec: ")
        assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The home may be below a file or on a read-only disk, which only the user can change."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    status, _, err = _run(capsys, "run", "demo", "--home", str(tmp_path / "file" / "home"))
    assert status == 2
    assert "cannot be written" in err
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that another process listens on is named, with the option that chooses another one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = _run(capsys, "ui", "--port", str(port))
    assert status == 2
    assert f"Port {port} " in err
    assert "--port" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_shows_commands_and_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A new user sees every command and can copy an example."""
    status, out, err = _run(capsys, *arguments)
    assert (status, err) == (0, "")
    for words in (*COMMANDS, "Examples", "macrec run demo", "--version", "--install-completion"):
        assert words.partition(" ")[0] in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help fits 80 characters, cuts no word off, says what each option takes, and flags take nothing."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = _run(capsys, *command.split(), "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "<bool>" not in out
    assert "…" not in out
    if "--home" in out:
        assert "MACREC_HOME" in out
    if "--data " in out:
        assert "MACREC_DATA" in out
    if command in ("run", "recommend", "settings", "promote"):
        assert "Examples:" in out
        assert out.count(f"macrec {command} ") > 2
    sentences = out.split("Usage:")[1].splitlines()[2:]
    assert re.match(r" [A-Z][a-z]+ ", sentences[0]), "the first line says what the command does"


def test_defaults_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that may be left out says what then happens."""
    assert "[default: 10]" in _run(capsys, "recommend", "--help")[1]
    assert "(the challenger)" in _run(capsys, "promote", "--help")[1]
    assert "[default: 3]" in _run(capsys, "backtest", "--help")[1]


def test_the_help_lists_the_assets(capsys: pytest.CaptureFixture[str]) -> None:
    """`--until` and `--only` name every asset of a full run, and no other."""
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.launch import asset_names

    assert sorted(ASSETS) == sorted(asset_names(defs))
    words = re.findall(r"[a-z_]+", _run(capsys, "run", "--help")[1])
    for asset in ASSETS:
        assert words.count(asset) >= 2


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version and nothing else."""
    assert _run(capsys, "--version") == (0, f"macrec {__version__}\n", "")


def test_data_sets_are_listed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """`datasets` lists all of them; `validate` says which are ready, and fails if one is not."""
    status, out, _ = _run(capsys, "datasets")
    assert status == 0
    for name in ("demo", "movielens-100k", "amazon-instruments"):
        assert name in out
    assert _run(capsys, "datasets", "list")[1] == out
    assert _run(capsys, "datasets", "validate", "demo")[:2] == (0, "demo: ready\n")
    status, out, _ = _run(capsys, "datasets", "validate")
    assert status == 2
    assert "demo: ready" in out
    assert "movielens-100k: not ready" in out
    assert "u.data" in out


def test_the_help_is_quick() -> None:
    """The help does not wait for torch, MLflow or Dagster to be imported."""
    code = (
        "import sys\nfrom macrec_pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'mlflow', 'dagster', 'transformers', 'polars', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_with_its_own_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 130 tells scripts that the user stopped the command; there is one line and no traceback."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("macrec_pipeline.cli.datasets.dataset_names", interrupt)
    status, out, err = _run(capsys, "datasets", "list")
    assert (status, out) == (application.INTERRUPTED, "") == (130, "")
    assert err == "macrec: Interrupted. Finished work is kept.\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody expected is not reduced to a line, and Python ends with status 1."""

    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr("macrec_pipeline.cli.datasets.dataset_names", fail)
    with pytest.raises(ZeroDivisionError):
        main(["datasets", "list"])


def _completions(line: str) -> list[str]:
    """Return what bash is offered for the last word of a command line."""
    words = line.split(" ")
    environment = os.environ | {
        "_MACREC_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [sys.executable, "-m", "macrec_pipeline.cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_shell_completes_names() -> None:
    """Tab completes commands, data sets, assets, settings and sections."""
    assert _completions("macrec rec") == ["recommend", "recommend-all"]
    assert _completions("macrec run ") == dataset_names()
    assert _completions("macrec run demo --until qua") == _completions("macrec run demo --only qua")
    assert _completions("macrec run demo --only qua") == ["quarantine", "quantizer"]
    assert _completions("macrec run demo --set identity.m") == ["identity.mode="]
    assert _completions("macrec settings reco") == ["recommender", "recommendations"]
    assert _completions("macrec settings decoding.t") == ["decoding.top_k"]
    assert _completions("macrec promote movielens-100") == ["movielens-100k"]
    assert _completions("macrec datasets ") == ["list", "validate", "new"]


def test_settings_are_completed_with_their_values() -> None:
    """After the equals sign come the values of a setting that has few; all helps fit on one line."""
    from macrec_pipeline.cli.completion import complete_assignment

    names = [name for name, _ in complete_assignment("")]
    assert names == [f"{setting.name}=" for setting in all_settings() if setting.name != "preset"]
    assert [name for name, _ in complete_assignment("runtime.device=c")] == [
        "runtime.device=cpu",
        "runtime.device=cuda",
    ]
    assert complete_assignment("seed=") == []
    assert complete_assignment("nope=") == []
    assert all(len(text) <= 70 and "\n" not in text for _, text in complete_assignment(""))


def test_the_completion_script_can_be_shown() -> None:
    """`--show-completion bash` would print it, as `--install-completion` installs it."""
    environment = os.environ | {"_MACREC_COMPLETE": "source_bash"}
    command = [sys.executable, "-m", "macrec_pipeline.cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "complete -o default -F _macrec_completion macrec" in done.stdout
