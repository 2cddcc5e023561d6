"""The documentation names only what exists, its indexes are complete, and the site builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from macrec_pipeline.cli.application import app
from macrec_pipeline.config.reference import all_settings, setting_sections
from macrec_pipeline.serving.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BUILD = ROOT / "docs" / "site" / "build.py"


def _code_of(page: Path) -> str:
    """Return all code of a page: fenced blocks and spans."""
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
    return "\n".join(fenced.findall(text) + re.findall(r"`([^`\n]+)`", fenced.sub("", text)))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_named_command_exists(page: Path) -> None:
    root = typer.main.get_command(app)
    for words in re.findall(r"(?:^|[\s`/])macrec((?: [a-z][a-z-]*)+)", _code_of(page)):
        command, names = root, words.split()
        for name in names:
            if not hasattr(command, "commands"):
                break  # an argument, such as the name of a data set
            assert name in command.commands, f"{page.name} names `macrec{words}`, which is no command"
            command = command.commands[name]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_named_setting_exists(page: Path) -> None:
    settings = {each.name for each in all_settings()} | set(ServiceSettings.model_fields)
    sections = {each.name for each in setting_sections()}
    for name in re.findall(r"macrec [^\n#]*?--set[ =]['\"]?([a-z_.]+)=", _code_of(page)):
        assert name in settings, f"{page.name} names the setting {name}, which does not exist"
    for section, key in re.findall(r"`([a-z_]+)\.([a-z_0-9.]+)(?:: [^`]*)?`", page.read_text(encoding="utf-8")):
        if section in sections and key not in ("py", "parquet", "json", "md", "safetensors"):
            name = f"{section}.{key}"
            assert name in settings | sections, f"{page.name} names the setting {name}, which does not exist"


def test_every_decision_is_in_the_index_with_its_title() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for record in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        number, title = re.match(r"# (\d+)\. (.+)", record.read_text(encoding="utf-8")).groups()
        assert f"| [{number}]({record.name}) | {title} |" in index


def test_every_finding_is_in_the_index_and_states_its_versions() -> None:
    index = (ROOT / "findings" / "README.md").read_text(encoding="utf-8")
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    assert scripts
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert f"[{script.name}]({script.name})" in index
        assert os.access(script, os.X_OK), f"{script.name} is not executable"
        assert all(f"\n# {part}" in text for part in ("Versions:", "Source:", "One would expect:", "Seen:", "Output:"))
        assert "macrec_pipeline" not in text


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    files = [*(ROOT / "macrec_pipeline").rglob("*.py"), ROOT / "docker-compose.yml"]
    used = {name for file in files for name in re.findall(r"\bMACREC_[A-Z_]+\b", file.read_text(encoding="utf-8"))}
    assert used
    assert used == set(re.findall(r"\bMACREC_[A-Z_]+\b", page))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    built = subprocess.run([sys.executable, BUILD, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"settings.html", "data.html", "README.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:[^\"]*)", page.read_text(encoding="utf-8")
        )
        assert not loaded, f"{page.name} loads {loaded}"
    listed = re.findall(r"\]\(([^)]+)\)", (tmp_path / "site" / "llms.txt").read_text(encoding="utf-8"))
    assert all((tmp_path / "site" / name).is_file() for name in listed)
    assert "docs/data.md" in listed
