"""Aliases in YAML work for repeated settings, and are refused before they multiply.

The documents here are small: ten anchors of two aliases each stand for about a thousand values.
"""

import time
from pathlib import Path

import pytest
import yaml

from macrec_pipeline.config import yaml_text
from macrec_pipeline.config.yaml_text import RefusedYamlError, load_yaml
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.presets import parse_overrides


def doubled(levels: int) -> str:
    """Return a document whose last value stands for 2 ** levels texts."""
    lines = ["a0: &a0 [x]", *(f"a{level}: &a{level} [*a{level - 1}, *a{level - 1}]" for level in range(1, levels + 1))]
    return "\n".join(lines)


def test_repeated_settings_work() -> None:
    text = "first: &common {user_id: user, texts: [a, b]}\nsecond: {<<: *common, file: x.csv}\nthird: *common\n"
    common = {"user_id": "user", "texts": ["a", "b"]}
    assert load_yaml(text) == {"first": common, "second": {**common, "file": "x.csv"}, "third": common}


def test_values_are_those_of_safe_yaml() -> None:
    files = sorted((Path(__file__).parents[2] / "datasets").glob("*.yaml"))
    assert len(files) > 5
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert load_yaml(text) == yaml.safe_load(text)
    for text in ("", "[1, 2]", "2020-01-01", "null", "a: !!str 1", '"text"', "- &a 1\n- *a"):
        assert load_yaml(text) == yaml.safe_load(text)


def test_aliases_may_repeat_values_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of ten texts counts eleven values, and three aliases of it thirty-three."""
    text = f"list: &list [{', '.join('abcdefghij')}]\ncopies: [*list, *list, *list]\n"
    monkeypatch.setattr(yaml_text, "MAX_REPEATED_VALUES", 33)
    assert load_yaml(text)["copies"] == [list("abcdefghij")] * 3
    monkeypatch.setattr(yaml_text, "MAX_REPEATED_VALUES", 32)
    with pytest.raises(RefusedYamlError, match=r"^line 2: the aliases up to \*list stand for more than 32 values\."):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        doubled(20),
        "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 20))]),
        f"text: &text {'x' * 10_000}\ncopies: [{', '.join(['*text'] * 100)}]",
    ],
    ids=["lists", "merged mappings", "a long text"],
)
def test_aliases_that_multiply_are_refused_quickly(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RefusedYamlError, match="stand for more than 10000 values"):
        load_yaml(text)
    assert time.perf_counter() - started < 1


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    with pytest.raises(RefusedYamlError, match=r"line 1: the alias \*a is inside the part that it repeats"):
        load_yaml("a: &a [*a]")


def test_an_unknown_alias_stays_an_error_of_yaml() -> None:
    with pytest.raises(yaml.YAMLError, match="undefined alias"):
        load_yaml("a: *b")


def test_deep_nesting_is_refused() -> None:
    assert load_yaml("[" * 50 + "]" * 50) is not None
    with pytest.raises(RefusedYamlError, match="nested more than 50 deep"):
        load_yaml("[" * 5_000 + "]" * 5_000)


@pytest.mark.parametrize("text", ["2020-13-45", "a: 2020-02-31"])
def test_a_date_that_does_not_exist_is_an_error_of_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_a_data_set_and_a_setting_are_refused_with_a_plain_message(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(f"name: shop\ntitle: Shop\nsource: {{reader: demo}}\n{doubled(20)}\n")
    with pytest.raises(ConfigError, match=r"shop\.yaml cannot be read as YAML: line 1\d: the aliases up to \*a1\d"):
        load_dataset("shop", tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: latin\ntitle: Caf\xe9\nsource: {reader: demo}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not text in UTF-8: .* Save the file in UTF-8\."):
        load_dataset("latin", tmp_path)
    deep = "[" * 60 + "]" * 60
    with pytest.raises(ConfigError, match=r"The value of `routes` is refused: line 1: lists and mappings are nested"):
        parse_overrides([f"routes={deep}"])
