"""The command `macrec settings`."""

import json
from pathlib import Path

import pytest

from macrec_pipeline.cli import main
from macrec_pipeline.config.reference import all_settings, setting_sections
from macrec_pipeline.datasets import load_dataset

SHOP = """\
name: shop
title: A shop
preset: demo
k_core: 3
encoders: {text: "sentence-transformers:e5"}
source: {reader: demo}
overrides: {recommender: {num_epochs: 7}, seed: 20260}
"""


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets with a shop, and a terminal of 80 characters."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "shop.yaml").write_text(SHOP, encoding="utf-8")
    monkeypatch.setenv("MACREC_DATASETS", str(folder))
    monkeypatch.setenv("COLUMNS", "80")
    return folder


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["settings", *arguments])
    return int(ended.value.code or 0), *capsys.readouterr()


def test_without_arguments_it_lists_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    """Each section has the number of its settings and a description, and the end says how to see more."""
    status, out, err = _run(capsys)
    assert (status, err) == (0, "")
    for section in setting_sections():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [section.name]]
        assert line.split()[1] == str(len(section.settings))
    assert f"{len(all_settings())} settings in {len(setting_sections())} sections" in out
    assert "macrec settings recommender " in out


def test_a_section_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting of the section has its value, type, bounds, default, source and description."""
    status, out, _ = _run(capsys, "decoding")
    assert status == 0
    text = " ".join(out.split())
    assert (
        "decoding.top_k = 20 integer, from 1 to 1000; default: 20; source: default preset Items returned per user."
    ) in text
    for setting in all_settings():
        assert (f"{setting.name} = " in out) == (setting.section == "decoding")
        if setting.section == "decoding":
            assert setting.description in text
    assert "*" not in out


def test_a_section_includes_the_sections_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`identity` shows its limits too; `identity.limits` shows only them."""
    assert "identity.limits.max_gini.value = null" in _run(capsys, "identity")[1]
    out = _run(capsys, "identity.limits")[1]
    assert "identity.limits.max_gini.value = null" in out
    assert "identity.mode" not in out


def test_a_data_set_shows_every_setting_as_it_resolves_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Values that differ from the default are marked, and every value that something assigns has its source."""
    status, out, _ = _run(capsys, "shop")
    assert status == 0
    lines = out.splitlines()
    assert "Settings of the data set shop, preset demo" in lines
    assert "* k_core = 3  (default: 5; k_core of the data set file)" in lines
    assert "* num_epochs = 7  (default: 200; data set file)" in lines
    assert "* beam_width = 50  (default: 20; preset demo)" in lines
    assert "  seed = 20260  (data set file)" in lines
    assert "  ties = hash" in lines
    assert "encoders of the data set file" in " ".join(out.split())
    values = load_dataset("shop").config().model_dump(mode="json")
    assert sum(" = " in line for line in lines) == len(all_settings())
    assert f"  retire_for_days = {values['identity']['retire_for_days']}" in lines


@pytest.mark.parametrize("arguments", [["shop", "recommender"], ["recommender", "shop"]])
def test_a_data_set_and_a_section_go_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The section is explained with the values of the data set, in either order and with the option."""
    out = _run(capsys, *arguments)[1]
    assert "* recommender.num_epochs = 7" in out
    assert "default: 200; source: data set file" in out
    assert "* differs from the default" in out
    assert out == _run(capsys, "recommender", "--dataset", "shop")[1]


def test_a_change_can_be_checked_before_running_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`--set` changes the value and is its source; without anything else, only the changed settings are shown."""
    out = _run(capsys, "shop", "recommender.num_epochs", "--set", "recommender.num_epochs=9")[1]
    assert "* recommender.num_epochs = 9" in out
    assert "source: --set" in out
    out = _run(capsys, "--set", "seed=3")[1]
    assert "* seed = 3" in out
    assert "decoding" not in out
    status, _, err = _run(capsys, "shop", "--set", "recommender.num_epoch=9")
    assert status == 2
    assert "Did you mean `recommender.num_epochs`?" in err
    status, _, err = _run(capsys, "shop", "--set", "runtime.workers=4")
    assert status == 2
    assert "set runtime.driver" in err


def test_json_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts as JSON: all settings without arguments, a selection with them."""
    document = json.loads(_run(capsys, "--json")[1])
    assert (document["dataset"], document["preset"]) == (None, "default")
    assert [each["name"] for each in document["settings"]] == [setting.name for setting in all_settings()]
    (setting,) = json.loads(_run(capsys, "shop", "cleaning.k_core", "--json")[1])["settings"]
    assert setting == {
        "name": "cleaning.k_core",
        "section": "cleaning",
        "type": "integer",
        "bounds": "at least 1",
        "choices": [],
        "default": 5,
        "value": 3,
        "source": "k_core of the data set file",
        "differs_from_default": True,
        "description": setting["description"],
    }


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("recomender", "`recommender`"),
        ("shp", "`shop`"),
        ("sede", "`seed`"),
        ("recommender.num_epoch", "`recommender.num_epochs`"),
        ("identity.limit", "`identity.limits`"),
        ("zzz", None),
    ],
)
def test_an_unknown_argument_gets_a_suggestion(
    argument: str, suggestion: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sections, settings and data sets are all suggested; the message says where to find them."""
    status, out, err = _run(capsys, argument)
    assert (status, out) == (2, "")
    assert f"There is no section, setting or data set `{argument}`." in err
    assert (f"Did you mean {suggestion}?" in err) == (suggestion is not None)
    assert "macrec datasets" in err


def test_only_one_data_set_is_accepted(datasets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two data sets would need two columns of values."""
    (datasets / "other.yaml").write_text(SHOP.replace("name: shop", "name: other"), encoding="utf-8")
    status, _, err = _run(capsys, "shop", "other")
    assert status == 2
    assert "not both `shop` and `other`" in err


def test_a_data_set_with_the_name_of_a_section_needs_the_option(
    datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The argument means the section."""
    (datasets / "split.yaml").write_text(SHOP.replace("name: shop", "name: split"), encoding="utf-8")
    assert "split.method = leave_one_out" in _run(capsys, "split")[1]
    assert "Settings of the data set split" in _run(capsys, "--dataset", "split")[1]


def test_a_typo_in_a_data_set_file_names_the_file(datasets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown setting in the overrides gets a suggestion as well."""
    (datasets / "shop.yaml").write_text(SHOP.replace("num_epochs", "num_epoch"), encoding="utf-8")
    status, _, err = _run(capsys, "shop")
    assert status == 2
    assert "shop.yaml" in err
    assert "Did you mean `recommender.num_epochs`?" in err


@pytest.mark.parametrize("arguments", [[], ["shop"], *([section.name] for section in setting_sections())])
def test_no_line_is_wider_than_the_terminal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Lines wrap between words at 80 characters, and hold no control characters when they are redirected."""
    out = _run(capsys, *arguments)[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    descriptions = [each.description for each in (*all_settings(), *setting_sections())]
    words = {word for text in descriptions for word in text.split()}
    assert {word for word in out.split() if word.endswith("-")} <= words
