import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModelContext

from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from macrec_pipeline.tracking.pyfunc_model import RecommenderModel


@pytest.fixture
def model(bundle_folder: Path) -> RecommenderModel:
    loaded = RecommenderModel()
    loaded.load_context(PythonModelContext({"bundle": str(bundle_folder)}, None))
    return loaded


def predict(model: RecommenderModel, histories: list[Any], params: dict[str, Any] | None = None) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame({"history": pd.Series(histories, dtype=object)}), params)


def test_one_row_a_row(model: RecommenderModel) -> None:
    """Each row gets its items, scores and fallback, under the index of the input."""
    rows = pd.DataFrame({"user_id": ["u1", "u2"], "history": [["item-3"], ["nobody-knows-it"]]}, index=[7, 3])
    answer = model.predict(None, rows, {"k": 2})
    assert list(answer.columns) == ["item_ids", "scores", "fallback"]
    assert answer.index.tolist() == [7, 3]
    assert answer["item_ids"].tolist() == [["item-0", "item-1"], ["item-0", "item-1"]]
    assert answer["scores"].tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert answer["fallback"].tolist() == ["none", "popularity"]
    assert json.loads(answer.to_json(orient="records"))[0]["fallback"] == "none"


def test_no_rows(model: RecommenderModel) -> None:
    """An empty table gives an empty table of the same columns."""
    answer = predict(model, [])
    assert (list(answer.columns), len(answer)) == (["item_ids", "scores", "fallback"], 0)


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
def test_what_a_history_may_be(model: RecommenderModel, cell: Any, expected: list[str]) -> None:
    """A list, tuple or array of strings is a history; nothing at all is an empty one."""
    predict(model, [cell])
    assert model.bundle.asked["histories"] == [expected]
    assert all(type(item_id) is str for item_id in model.bundle.asked["histories"][0])


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("item-1", r"history of row 1 must be a list of item ids, oldest first, got str 'item-1'"),
        ({"item-1": 1}, "must be a list of item ids.*got dict"),
        (5, "must be a list of item ids.*got int 5"),
        ([["item-1"]], r"holds \['item-1'\] at position 0"),
        (np.array([["item-1"]]), "must be a list of item ids.*got ndarray"),
        ([1, 2], "history of row 1 holds 1 at position 0: item ids are strings"),
        (["item-1", None], "history of row 1 holds None at position 1"),
        ([b"item-1"], "at position 0: item ids are strings"),
    ],
)
def test_what_a_history_may_not_be(model: RecommenderModel, cell: Any, problem: str) -> None:
    """Anything else is refused as the caller's mistake, with its row and position."""
    with pytest.raises(MlflowException, match=problem) as caught:
        predict(model, [["item-0"], cell])
    assert caught.value.get_http_status_code() == 400


def test_a_table_without_histories(model: RecommenderModel) -> None:
    """A misspelt column, and something that is no table, are refused with what was got."""
    with pytest.raises(MlflowException, match=r"column 'history'.*got \['hist'\]") as caught:
        model.predict(None, pd.DataFrame({"hist": [["a"]]}))
    assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="got list"):
        model.predict(None, [["a"]])


def test_params_reach_the_bundle(model: RecommenderModel) -> None:
    """Every param is handed on; what is not given, or null, has its default; beam width 0 is the bundle's own."""
    predict(model, [["item-1"]])
    assert model.bundle.asked == {
        "histories": [["item-1"]],
        "k": 10,
        "route": "fused",
        "exclude_seen": False,
        "beam": None,
    }
    predict(model, [[]], {"k": np.int64(12), "route": "image", "exclude_seen": np.True_, "beam_width": 50})
    assert model.bundle.asked == {"histories": [[]], "k": 12, "route": "image", "exclude_seen": True, "beam": 50}
    predict(model, [[]], {"k": None, "route": None})
    assert (model.bundle.asked["k"], model.bundle.asked["route"]) == (10, "fused")


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"k": -1}, "got -1"),
        ({"k": 2.5}, "got 2.5"),
        ({"k": "3"}, "got '3'"),
        ({"k": True}, "got True"),
        ({"k": 13}, "k is 13, but the catalogue has only 12 items"),
        ({"beam_width": -1}, "beam_width must be a whole number of at least 0, got -1"),
        ({"route": "audio"}, "route must be one of fused, text, image, got 'audio'"),
        ({"exclude_seen": "no"}, "exclude_seen must be true or false, got 'no'"),
        ({"rules": ["item-1"]}, r"must map allowed, .*, excluded_categories to lists, got \['item-1'\]"),
        ({"rules": {"alowed": []}}, "rules must map allowed, excluded, .* to lists, got {'alowed'"),
        ({"rules": {"allowed_categories": "A"}}, "allowed_categories of rules must be a list of categories, got str"),
        ({"rules": {"allowed": "item-1"}}, "allowed of rules must be a list of item ids, got str 'item-1'"),
        ({"rules": {"excluded": ["item-1", 2]}}, "excluded of rules holds 2 at position 1"),
        ({"route": np.array(["text", "image"])}, "route must be one of fused, text, image, got array"),
        ({"top": 3}, "no param 'top'. Use: k, route, exclude_seen, beam_width, rules"),
    ],
)
def test_params_that_cannot_be(model: RecommenderModel, params: dict[str, Any], problem: str) -> None:
    """A param out of range is refused as the caller's mistake, with what was got."""
    with pytest.raises(MlflowException, match=problem) as caught:
        predict(model, [["item-1"]], params)
    assert caught.value.get_http_status_code() == 400


def test_rules_reach_the_bundle(model: RecommenderModel) -> None:
    """Those of all rows and those of each; null is no rule, and an empty list is one."""
    rows = pd.DataFrame({"history": [["item-1"]] * 3, "allowed": [["item-2"], None, []], "excluded": [None, None, []]})
    model.predict(None, rows, {"rules": {"excluded": ("item-3",)}})
    assert model.bundle.rules == (Rules(None, ["item-3"]), [Rules(["item-2"]), None, Rules([], [])])
    model.predict(None, rows[["history"]], {"rules": {"allowed": None}})
    assert model.bundle.rules == (None, [None, None, None])
    with pytest.raises(MlflowException, match="allowed of row 1 must be a list of item ids, got int 3"):
        model.predict(None, rows.assign(allowed=[None, 3, []]))
    named = rows[["history"]].assign(allowed_categories=[["A"], None, None], excluded_categories=[None, ["B", "C"], []])
    model.predict(None, named, {"rules": {"excluded_categories": ["D"]}})
    assert model.bundle.rules == (
        Rules(excluded_categories=["D"]),
        [Rules(allowed_categories=["A"]), Rules(excluded_categories=["B", "C"]), Rules(excluded_categories=[])],
    )


def test_a_row_may_say_whether_seen_items_are_left_out(model: RecommenderModel) -> None:
    """Where it is null, the param counts; what is neither true nor false is refused with its row."""
    rows = pd.DataFrame({"history": [["item-1"]] * 4, "exclude_seen": [True, None, np.False_, pd.NA]})
    for of_call in (True, False):
        model.predict(None, rows, {"exclude_seen": of_call})
        assert model.bundle.asked["exclude_seen"] == [True, of_call, False, of_call]
    with pytest.raises(MlflowException, match="exclude_seen of row 2 must be true or false, got 'no'") as caught:
        model.predict(None, rows.assign(exclude_seen=[True, None, "no", 1]))
    assert caught.value.get_http_status_code() == 400


def test_two_columns_of_one_name(model: RecommenderModel) -> None:
    """It cannot be known which is meant."""
    rows = pd.DataFrame([[["item-1"], ["item-2"]]], columns=["history", "history"])
    with pytest.raises(MlflowException, match="a table with one column 'history'"):
        model.predict(None, rows)


def test_what_the_bundle_refuses(model: RecommenderModel) -> None:
    """The bundle's own refusals are the caller's mistakes too."""
    model.bundle._answers = False
    with pytest.raises(MlflowException, match="the bundle was not made for this") as caught:
        predict(model, [["item-1"]])
    assert caught.value.get_http_status_code() == 400
