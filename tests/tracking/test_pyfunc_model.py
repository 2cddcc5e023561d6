"""The served model validates requests, passes them to the bundle, and returns one row per input row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModelContext

from macrec_pipeline.recommender.retrieval.diversity import DiversityOptions
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from macrec_pipeline.tracking.pyfunc_model import RecommenderModel


@pytest.fixture
def model(bundle_folder: Path) -> RecommenderModel:
    model = RecommenderModel()
    model.load_context(PythonModelContext({"bundle": str(bundle_folder)}, None))
    return model


def predict(model: RecommenderModel, histories: list[Any], params: dict[str, Any] | None = None) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame({"history": pd.Series(histories, dtype=object)}), params)


def test_one_row_is_returned_per_input_row(model: RecommenderModel) -> None:
    """Each has its items, scores and fallback, and the index of the input is preserved."""
    rows = pd.DataFrame({"user_id": ["u1", "u2"], "history": [["item-3"], ["nobody-knows-it"]]}, index=[7, 3])
    result = model.predict(None, rows, {"k": 2})
    assert list(result.columns) == ["item_ids", "scores", "fallback"]
    assert result.index.tolist() == [7, 3]
    assert result["item_ids"].tolist() == [["item-0", "item-1"], ["item-0", "item-1"]]
    assert result["scores"].tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert result["fallback"].tolist() == ["none", "popularity"]
    assert json.loads(result.to_json(orient="records"))[0]["fallback"] == "none"


def test_an_empty_table_is_valid(model: RecommenderModel) -> None:
    """The result is an empty table with the usual columns."""
    result = predict(model, [])
    assert (list(result.columns), len(result)) == (["item_ids", "scores", "fallback"], 0)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (["item-1", "item-2"], ["item-1", "item-2"]),
        (("item-1",), ["item-1"]),
        (np.array(["item-1", "item-2"]), ["item-1", "item-2"]),
        (np.array(["item-1", "item-2"], dtype=object), ["item-1", "item-2"]),
        (np.array([]), []),
        ([], []),
        (None, []),
        (float("nan"), []),
        (pd.NA, []),
    ],
)
def test_valid_histories(model: RecommenderModel, cell: Any, expected: list[str]) -> None:
    """A list, tuple or array of strings is a history; null is an empty one."""
    predict(model, [cell])
    assert model.bundle.last_request["histories"] == [expected]
    assert all(type(item_id) is str for item_id in model.bundle.last_request["histories"][0])


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("item-1", r"`history` in row 1 must be a list of item ids, oldest first, but is str 'item-1'"),
        ({"item-1": 1}, "must be a list of item ids.*but is dict"),
        (5, "must be a list of item ids.*but is int 5"),
        ([["item-1"]], r"contains \['item-1'\] at position 0"),
        (np.array([["item-1"]]), "must be a list of item ids.*but is ndarray"),
        ([1, 2], "`history` in row 1 contains 1 at position 0, but item ids must be strings"),
        (["item-1", None], "`history` in row 1 contains None at position 1"),
        ([b"item-1"], "at position 0, but item ids must be strings"),
    ],
)
def test_invalid_histories(model: RecommenderModel, cell: Any, problem: str) -> None:
    """Anything else is rejected with status 400, and the message names the row and the position."""
    with pytest.raises(MlflowException, match=problem) as caught:
        predict(model, [["item-0"], cell])
    assert caught.value.get_http_status_code() == 400


def test_a_missing_history_column_is_rejected(model: RecommenderModel) -> None:
    """The message shows the columns of the table, or the type of what is not a table."""
    with pytest.raises(MlflowException, match=r"column 'history'.*but has the columns \['hist'\]") as caught:
        model.predict(None, pd.DataFrame({"hist": [["a"]]}))
    assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match=r"must be a table .*but is list"):
        model.predict(None, [["a"]])


def test_parameters_reach_the_bundle(model: RecommenderModel) -> None:
    """A missing or null parameter has its default, and a beam width of 0 stands for the bundle's own."""
    predict(model, [["item-1"]])
    assert model.bundle.last_request == {
        "histories": [["item-1"]],
        "k": 10,
        "route": "fused",
        "exclude_seen": False,
        "beam": None,
    }
    predict(model, [[]], {"k": np.int64(12), "route": "image", "exclude_seen": np.True_, "beam_width": 50})
    assert model.bundle.last_request == {"histories": [[]], "k": 12, "route": "image", "exclude_seen": True, "beam": 50}
    predict(model, [[]], {"k": None, "route": None})
    assert (model.bundle.last_request["k"], model.bundle.last_request["route"]) == (10, "fused")


def test_diversity_options_replace_the_bundles_settings(model: RecommenderModel) -> None:
    """Null leaves a setting in force; a limit in the request replaces whichever limit the settings have."""
    for params, expected in (
        ({}, model.bundle.diversity),
        ({"diversity": None, "prefix_length": None}, model.bundle.diversity),
        ({"diversity": 1}, DiversityOptions(1.0, 0, 2, 3)),
        ({"max_per_category": np.int64(4)}, DiversityOptions(0.25, 4, 0, 3)),
        ({"max_per_prefix": 0}, DiversityOptions(0.25, 0, 0, 3)),
    ):
        predict(model, [["item-1"]], params)
        assert model.bundle.requested_diversity == expected


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"k": 0}, "`k` must be a whole number of at least 1, but is 0"),
        ({"k": -1}, "`k` .*but is -1"),
        ({"k": 2.5}, "`k` .*but is 2.5"),
        ({"k": "3"}, "`k` .*but is '3'"),
        ({"k": True}, "`k` .*but is True"),
        ({"k": 13}, "`k` is 13, but the catalogue has only 12 items"),
        ({"beam_width": -1}, "`beam_width` must be a whole number of at least 0, but is -1"),
        ({"route": "audio"}, "`route` must be one of fused, text, image, but is 'audio'"),
        ({"diversity": "much"}, "`diversity` must be a number from 0 to 1, but is 'much'"),
        ({"diversity": 1.5}, "`diversity` must be a number from 0 to 1, but is 1.5"),
        ({"max_per_category": 2.5}, "`max_per_category` must be a whole number of at least 0, but is 2.5"),
        ({"max_per_prefix": -1}, "`max_per_prefix` must be a whole number of at least 0, but is -1"),
        ({"prefix_length": 0}, "`prefix_length` must be a whole number of at least 1, but is 0"),
        ({"max_per_prefix": 1, "max_per_category": 2}, "Only one of .* but they are 2 and 1"),
        ({"explain": "yes"}, "`explain` must be true or false, but is 'yes'"),
        ({"exclude_seen": "no"}, "`exclude_seen` must be true or false, but is 'no'"),
        ({"rules": ["item-1"]}, r"must map any of allowed, .*, excluded_categories to lists, but is \['item-1'\]"),
        ({"rules": {"alowed": []}}, "`rules` must map any of allowed, excluded, .* to lists, but is {'alowed'"),
        (
            {"rules": {"allowed_categories": "A"}},
            "`allowed_categories` in `rules` must be a list of categories, but is str",
        ),
        ({"rules": {"allowed": "item-1"}}, "`allowed` in `rules` must be a list of item ids, but is str 'item-1'"),
        ({"rules": {"excluded": ["item-1", 2]}}, "`excluded` in `rules` contains 2 at position 1"),
        ({"route": np.array(["text", "image"])}, "`route` must be one of fused, text, image, but is array"),
        ({"top": 3}, "Unknown parameter 'top'. The parameters are k, route, exclude_seen, beam_width, rules, explain"),
    ],
)
def test_invalid_parameters(model: RecommenderModel, params: dict[str, Any], problem: str) -> None:
    """Invalid parameters are rejected with status 400, and the message shows the value."""
    with pytest.raises(MlflowException, match=problem) as caught:
        predict(model, [["item-1"]], params)
    assert caught.value.get_http_status_code() == 400


def test_rules_reach_the_bundle(model: RecommenderModel) -> None:
    """Rules for a call and rules for a row reach the bundle; null is no rule, but an empty list is one."""
    rows = pd.DataFrame({"history": [["item-1"]] * 3, "allowed": [["item-2"], None, []], "excluded": [None, None, []]})
    model.predict(None, rows, {"rules": {"excluded": ("item-3",)}})
    assert model.bundle.rules == (Rules(None, ["item-3"]), [Rules(["item-2"]), None, Rules([], [])])
    model.predict(None, rows[["history"]], {"rules": {"allowed": None}})
    assert model.bundle.rules == (None, [None, None, None])
    with pytest.raises(MlflowException, match="`allowed` in row 1 must be a list of item ids, but is int 3"):
        model.predict(None, rows.assign(allowed=[None, 3, []]))
    with_categories = rows[["history"]].assign(
        allowed_categories=[["A"], None, None], excluded_categories=[None, ["B", "C"], []]
    )
    model.predict(None, with_categories, {"rules": {"excluded_categories": ["D"]}})
    assert model.bundle.rules == (
        Rules(excluded_categories=["D"]),
        [Rules(allowed_categories=["A"]), Rules(excluded_categories=["B", "C"]), Rules(excluded_categories=[])],
    )


def test_each_row_can_exclude_seen_items(model: RecommenderModel) -> None:
    """Null means the parameter; a cell that is neither true nor false is rejected with its row."""
    rows = pd.DataFrame({"history": [["item-1"]] * 4, "exclude_seen": [True, None, np.False_, pd.NA]})
    for default in (True, False):
        model.predict(None, rows, {"exclude_seen": default})
        assert model.bundle.last_request["exclude_seen"] == [True, default, False, default]
    with pytest.raises(MlflowException, match="`exclude_seen` in row 2 must be true or false, but is 'no'") as caught:
        model.predict(None, rows.assign(exclude_seen=[True, None, "no", 1]))
    assert caught.value.get_http_status_code() == 400


def test_two_columns_of_the_same_name_are_rejected(model: RecommenderModel) -> None:
    """The model cannot know which one is meant."""
    rows = pd.DataFrame([[["item-1"], ["item-2"]]], columns=["history", "history"])
    with pytest.raises(MlflowException, match="a table with one column 'history'"):
        model.predict(None, rows)


def test_errors_of_the_bundle_are_passed_on(model: RecommenderModel) -> None:
    """A request that the bundle itself rejects gets status 400 too."""
    model.bundle._answers = False
    with pytest.raises(MlflowException, match="the fake bundle rejects every request") as caught:
        predict(model, [["item-1"]])
    assert caught.value.get_http_status_code() == 400
