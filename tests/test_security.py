"""What docs/security.md promises: data is never run as code, texts are only text, and no secret is stored."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from macrec_pipeline.defs.presentation import preview
from macrec_pipeline.errors import TrackingError
from macrec_pipeline.runtime.text_sanitizing import as_markdown, one_line
from macrec_pipeline.terminal import console, failures_table, history_lines
from macrec_pipeline.tracking.store import connect, without_password

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "macrec_pipeline").rglob("*.py"), *(ROOT / "deployment").rglob("*.py")])
MALICIOUS_TITLE = (
    "<img src=x onerror=alert(1)> ![x](http://evil/p.png) **b** `c` | d \x1b[31mred\x07 \u202edrow\n\r\x85next"
)

# Modules that run code found in data, or that unpack an archive to paths that the archive chooses.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile"}
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "__import__": "imports a module that data may name",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.load": "creates arbitrary objects",
    "yaml.safe_load": "expands nested aliases without a limit, which config/yaml_text.py has",
    "yaml.unsafe_load": "creates arbitrary objects",
    "yaml.full_load": "creates arbitrary objects",
    "tempfile.mktemp": "lets another process take the name first",
    "mlflow.pytorch.load_model": "unpickles",
    "mlflow.sklearn.load_model": "unpickles",
    "pd.read_pickle": "unpickles",
    "pandas.read_pickle": "unpickles",
    "shutil.unpack_archive": "unpacks to paths that the archive chooses",
}
# Call -> the keyword argument that it must have, and its value.
REQUIRED_KEYWORDS = {
    "torch.load": ("weights_only", True),
    "timm.models.load_state_dict": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}
# Keyword argument -> the value that no call may pass.
FORBIDDEN_KEYWORDS = {
    "shell": True,
    "weights_only": False,
    "allow_pickle": True,
    "trust_remote_code": True,
    "verify": False,
}


def find_dangers(source: str) -> Iterator[str]:
    """Yield a line about everything in a module that could run code from data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"imports {name}" for name in modules if name.split(".")[0] in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            constants = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
            if name in FORBIDDEN_CALLS:
                yield f"{name} {FORBIDDEN_CALLS[name]}"
            if (
                name in REQUIRED_KEYWORDS
                and constants.get(REQUIRED_KEYWORDS[name][0]) is not REQUIRED_KEYWORDS[name][1]
            ):
                yield f"{name} without {REQUIRED_KEYWORDS[name][0]}={REQUIRED_KEYWORDS[name][1]}"
            for keyword, value in FORBIDDEN_KEYWORDS.items():
                if keyword in constants and constants[keyword] is value:
                    yield f"{name} with {keyword}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_package_runs_code_from_data(path: Path) -> None:
    """No module uses pickle in any form, unsafe YAML, a shell, archives or eval."""
    assert list(find_dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib.externals import x", "imports joblib"),
        ("def f():\n  import zipfile", "imports zipfile"),
        ("torch.load(path)", "torch.load without weights_only"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only"),
        ("torch.load(path, weights_only=flag)", "torch.load without weights_only"),
        ("np.load(path)", "np.load without allow_pickle"),
        ("yaml.load(text, Loader=yaml.SafeLoader)", "yaml.load creates"),
        ("yaml.safe_load(text)", "yaml.safe_load expands"),
        ("subprocess.run('ls', shell=True)", "shell=True"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("eval(text)", "eval runs"),
        ("mlflow.pytorch.load_model(uri)", "unpickles"),
    ],
)
def test_the_search_finds_each_kind_of_danger(source: str, found: str) -> None:
    """Each rule rejects an example."""
    assert any(found in line for line in find_dangers(source))


def test_the_search_reads_the_whole_package() -> None:
    """The search would also pass if it read no files, so this checks that it reads them."""
    assert len(SOURCES) > 100
    assert any("torch.load(" in path.read_text(encoding="utf-8") for path in SOURCES)


def test_each_threat_in_the_documentation_names_an_existing_test() -> None:
    """Every row of the threat table names at least one test file, and all of them exist."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    lines = text.split("| threat |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(lines) > 12
    for line in lines:
        test_files = re.findall(r"`(test[\w/]+\.py)`", line.split("|")[-2])
        assert test_files, line
        assert all((ROOT / name).exists() or list(ROOT.glob(f"tests/**/{name}")) for name in test_files), line


@given(st.text(max_size=60))
def test_a_title_in_markdown_is_plain_text(title: str) -> None:
    """Whatever a title contains, a Markdown parser finds a single table cell of plain text with the same characters."""
    table = f"| head |\n| --- |\n| x{as_markdown(title)} |"
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(table)
    assert [token.type for token in tokens if token.type == "inline"] == ["inline", "inline"]
    cell = tokens[[token.type for token in tokens].index("td_open") + 1]
    assert {child.type for child in cell.children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in cell.children or []).split() == f"x{one_line(title)}".split()


def test_the_preview_in_dagster_shows_titles_as_they_are() -> None:
    """The preview in Dagster's catalogue has one line per row, and no tags, images or control characters."""
    markdown = preview(pl.DataFrame({"item_id": ["1"], "title": [MALICIOUS_TITLE]}), ["item_id", "title"]).value
    assert len(markdown.splitlines()) == 3
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert "<img" not in html
    assert "<strong>" not in html
    assert html.count("<td>") == 2
    assert all(character.isprintable() or character == "\n" for character in markdown)


def test_a_title_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What `macrec recommend` and `macrec fetch` print from a catalogue has no escape sequences or extra lines."""
    catalogue = {"1": {"title": MALICIOUS_TITLE, "image_path": None}}
    out = console()
    out.print(history_lines(["1", "\x1b]0;owned\x07"], catalogue), soft_wrap=True)
    out.print(failures_table([("1", "http://x/\x1b[2J", "404", "[red]no\x1b[31m", 1)]))
    printed = capsys.readouterr().out
    assert "onerror" in printed
    assert "owned" in printed
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_a_password_in_the_tracking_uri_is_rejected_or_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, logs and errors would show it, so it is rejected for a server and left out for a database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.com:5000")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD") as error:
        connect(tmp_path)
    assert "hunter2" not in str(error.value)
    assert without_password("postgresql://me:hunter2@db/mlflow is away") == "postgresql://db/mlflow is away"
    assert without_password("models:/macrec-demo@champion") == "models:/macrec-demo@champion"


@pytest.mark.slow
def test_no_secret_from_the_environment_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with secrets in its environment stores none of them in its tables, MLflow, Dagster or reports."""
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.launch import LaunchRequest, launch

    secret = "canary-7d1f0c"
    for name in ("MLFLOW_TRACKING_PASSWORD", "DAGSTER_POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    for name in ("MLFLOW_TRACKING_URI", "DAGSTER_HOME", "MACREC_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    launch(LaunchRequest("demo", home, tmp_path / "data", overrides=(), only="raw_items"), defs=defs)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert any("dagster" in path.parts for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
