"""The home of a run: paths, URLs, and the environment variables that go with them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from macrec_pipeline.cli import main
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.launch import open_instance
from macrec_pipeline.defs.servers import local
from macrec_pipeline.defs.servers.local import local_plans
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.home import Home, home_of, restrict_access, use_private_umask
from macrec_pipeline.tracking import open_tracking


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MACREC_HOME", "MACREC_DATA", "MACREC_DATASETS", "DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MACREC_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize("text", [".macrec", "/srv/macrec", "a:b", "s3:/bucket", "C:/x"])
def test_a_path_is_a_folder(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path holds everything, whatever MACREC_STATE says."""
    monkeypatch.chdir(tmp_path)
    assert home_of(text) == Home(tmp_path / text, None)
    assert str(home_of(text)) == str(tmp_path / text)


@pytest.mark.parametrize("text", ["s3://bucket/a/prefix", "S3://bucket/a/prefix/"])
def test_a_url_is_for_tables_and_models(text: str, tmp_path: Path) -> None:
    """With a URL, tables and models go to the URL and everything else to the folder in MACREC_STATE."""
    assert home_of(text) == Home(tmp_path / "state", "s3://bucket/a/prefix")
    assert str(home_of(text)) == "s3://bucket/a/prefix"
    assert Settings(home=text).home_folder() == tmp_path / "state"
    assert Settings(home=text).store("demo").address("items") == "s3://bucket/a/prefix/demo/items"
    assert Settings(home=text).store("demo").location("items") == tmp_path / "state" / "demo" / "items"


@pytest.mark.parametrize("value", [None, "", "s3://bucket/state"])
def test_a_url_needs_a_folder_as_well(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases and locks cannot be stored at a URL, so the error names the variable that sets their folder."""
    monkeypatch.delenv("MACREC_STATE")
    if value is not None:
        monkeypatch.setenv("MACREC_STATE", value)
    with pytest.raises(ConfigError, match=r"MACREC_STATE"):
        home_of("s3://bucket/prefix")


@pytest.mark.parametrize(
    "text", ["s3://key:hidden@bucket/prefix", "s3://bucket/prefix?secret_key=hidden", "s3://bucket/x#hidden"]
)
def test_a_url_with_a_key_is_rejected(text: str) -> None:
    """URLs appear in links and logs. The error names the variables for keys and does not repeat the key."""
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as caught:
        home_of(text)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://", "s3:///", "s3:///prefix", "s3://bucket//prefix"])
def test_a_url_needs_a_bucket_and_no_empty_parts(text: str) -> None:
    """The error shows how to write the URL."""
    with pytest.raises(ConfigError, match=r"no bucket or an empty part\..*s3://bucket/prefix"):
        home_of(text)


def test_the_command_names_the_missing_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing MACREC_STATE ends with status 2, whether the URL comes from the option or from the variable."""
    monkeypatch.delenv("MACREC_STATE")
    for arguments, home in ((["run", "demo", "--home", "s3://a/b"], ""), (["promote", "demo"], "s3://a/b")):
        monkeypatch.setenv("MACREC_HOME", home)
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "set MACREC_STATE" in capsys.readouterr().err


def test_the_ui_uses_the_same_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UI's servers keep their records in the folder, and their runs get the URL."""
    monkeypatch.setattr(local, "server_command", lambda *_: (["mlflow"], {}))
    plans = local_plans(tmp_path / "state", tmp_path, port=1, mlflow_port=2, url="s3://bucket/prefix")
    dagster = plans[0].environment
    assert (dagster["MACREC_HOME"], dagster["MACREC_STATE"]) == ("s3://bucket/prefix", str(tmp_path / "state"))
    assert Path(dagster["DAGSTER_HOME"]).is_relative_to(tmp_path / "state")


def test_a_local_home_makes_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a URL opens no connection, even if AWS variables are set."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert not Settings(home=str(tmp_path)).store("demo").has("items")


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process whose new files everybody may read, as on most machines."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """The permissions of the directories, the folder among them, and of the files."""
    paths = [folder, *folder.rglob("*")]
    return (
        {path.stat().st_mode & 0o777 for path in paths if path.is_dir()},
        {path.stat().st_mode & 0o777 for path in paths if path.is_file()},
    )


def test_other_users_cannot_read_a_new_home(open_umask: None, tmp_path: Path) -> None:
    """Everything in a new home is for its owner alone, also the databases of Dagster and MLflow."""
    home = tmp_path / "new" / "home"
    with open_instance(home):
        open_tracking(home)
    assert (home / "mlflow" / "mlflow.db").is_file()
    assert (home / "dagster" / "history" / "runs.db").is_file()
    assert modes(home) == ({0o700}, {0o600})


@pytest.mark.parametrize(
    ("access", "directories", "files"), [("", 0o700, 0o600), ("read", 0o750, 0o640), ("write", 0o770, 0o660)]
)
def test_an_existing_home_is_mended_when_it_is_opened(
    access: str, directories: int, files: int, open_umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that an earlier version created gets the permissions that MACREC_HOME_GROUP allows, in both directions."""
    home, version = tmp_path / "home", tmp_path / "home" / "demo" / ".versions" / "items" / "0"
    version.mkdir(parents=True)
    (version / "items.parquet").write_bytes(b"x")
    (home / "mlflow").mkdir()
    (home / "mlflow" / "mlflow.db").write_bytes(b"x")
    (home / "demo" / "items").symlink_to(version)
    (home / "mlflow" / "elsewhere").symlink_to("/etc/hostname")
    monkeypatch.setenv("MACREC_HOME_GROUP", "none")
    restrict_access(home)
    assert modes(home) == ({0o700}, {0o600} | {Path("/etc/hostname").stat().st_mode & 0o777})
    (home / "mlflow" / "elsewhere").unlink()
    monkeypatch.setenv("MACREC_HOME_GROUP", access)
    restrict_access(home)
    assert modes(home) == ({directories}, {files})
    use_private_umask()
    (home / "mlflow" / "new").touch()
    assert modes(home) == ({directories}, {files})


def test_what_does_not_belong_to_the_home_stays_as_it_is(open_umask: None, tmp_path: Path) -> None:
    """A folder with other files in it, such as a person's own, is not closed to others; only what runs produce is."""
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "page.html").touch()
    (tmp_path / "mlflow").mkdir()
    restrict_access(tmp_path)
    assert modes(tmp_path / "public") == ({0o755}, {0o644})
    assert (tmp_path / "mlflow").stat().st_mode & 0o777 == 0o700


def test_an_unknown_access_of_the_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the values that exist."""
    monkeypatch.setenv("MACREC_HOME_GROUP", "all")
    with pytest.raises(ConfigError, match=r"MACREC_HOME_GROUP is 'all'\. Set it to one of: none, read, write\."):
        restrict_access(tmp_path / "home")
