"""Ten thousand random requests, most of them invalid: each gets a result or an error that says what was expected."""

import datetime
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc.model import PythonModelContext

from macrec_pipeline.tracking.packaging import save_bundle_model
from macrec_pipeline.tracking.pyfunc_model import RecommenderModel
from tests.tracking.served import ITEM_IDS, NUM_ITEMS, write_trained_bundle

STRINGS = [*ITEM_IDS, "", "nobody", "\ud800", "item-1\x00", "\u00fc" * 300]
NULLS = [None, float("nan"), pd.NA]
UNEXPECTED = [
    *(0, -1, 3, 10**30, 2.5, float("inf"), True, b"item-1", 1j, Decimal("NaN"), pd.NaT, np.float32("nan"), np.int64(3)),
    *({}, {"item-1": 1}, {"item-1"}, frozenset(), range(3), object(), datetime.date(2024, 1, 1), Ellipsis, int),
    *(
        np.array("item-1"),
        np.array([["item-1"]]),
        np.zeros((0, 2)),
        np.array([b"x"]),
        np.array([1.5]),
        np.array([None]),
    ),
    *(pd.Series(["item-1"]), pd.DataFrame(), pd.Categorical(["item-1"]), [["item-1"]], [[]], [None, "item-1"]),
]
COLUMNS = ["history"] * 9 + [
    "allowed",
    "excluded",
    "excluded_categories",
    "exclude_seen",
    "user_id",
    "History",
    "hist",
    " history",
    0,
    None,
    pd.NA,
    ("history",),
]
PARAMS = ["k", "route", "exclude_seen", "beam_width", "rules"] * 4 + ["top_k", "", 0, None, ("k",), pd.NA]
ROUTES = ["fused", "text", "image", "collaborative", "audio"]


class RandomRequests:
    """Draws requests; about one in ten is valid."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self) -> tuple[Any, Any]:
        return self.table(), self.params()

    def any_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def cell(self) -> Any:
        kind = self.random.random()
        if kind < 0.1:
            return self.any_of(*NULLS)
        if kind < 0.25:
            return self.any_of(*UNEXPECTED, *STRINGS)
        values = [self.any_of(*STRINGS) for _ in range(self.random.choice([0, 1, 2, 3, 40]))]
        if kind < 0.45:
            values.insert(self.random.randint(0, len(values)), self.any_of(*UNEXPECTED, *NULLS))
        return self.any_of(values, values, tuple(values), np.array([*values, None], dtype=object)[:-1])

    def table(self) -> Any:
        if self.random.random() < 0.05:
            return self.any_of(*UNEXPECTED, *NULLS, ITEM_IDS, {"history": [["item-1"]]})
        rows = self.random.randint(1, 3)
        names = [self.any_of(*COLUMNS) for _ in range(self.random.randint(0, 3))]
        if self.random.random() < 0.8:
            names = ["history", *(name for name in names if str(name) != "history")]
        columns = [pd.Series([self.cell() for _ in range(rows)], dtype=object) for _ in names]
        table = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(rows))
        table.columns = pd.Index(names, dtype=object, tupleize_cols=self.random.random() < 0.5)
        return table.set_axis([self.any_of("a", 7, 7, None) for _ in range(rows)])

    def params(self) -> Any:
        if self.random.random() < 0.05:
            return self.any_of(*UNEXPECTED, *NULLS, "k")
        return {self.any_of(*PARAMS): self.param_value() for _ in range(self.random.choice([0, 0, 1, 1, 2]))}

    def param_value(self) -> Any:
        number, flag = self.any_of(0, 1, 3, NUM_ITEMS, NUM_ITEMS + 1), self.any_of(True, False, "no")
        names = self.random.sample(
            ["allowed", "excluded", "allowed_categories", "allow", 0], k=self.random.randint(0, 2)
        )
        rules = {name: self.cell() for name in names}
        return self.any_of(number, number, self.any_of(*ROUTES), flag, rules, rules, self.any_of(*UNEXPECTED, *NULLS))


def check_result(result: Any, model_input: Any, params: dict[str, Any]) -> None:
    """Check for one row per input row, the input's index, no repeated item and at most k items."""
    assert list(result.columns) == ["item_ids", "scores", "fallback"]
    assert result.index.equals(pd.DataFrame(model_input).index), "MLflow turns a mapping into a table"
    k = params.get("k")
    for item_ids, scores, fallback in result.itertuples(index=False):
        assert len(set(item_ids)) == len(item_ids) == len(scores) <= (10 if k is None else k)
        assert set(item_ids) <= set(ITEM_IDS)
        assert np.isfinite(scores).all()
        assert fallback in ("none", "popularity")


def send(predict: Any, request: tuple[Any, Any]) -> bool:
    """Send a request and tell whether it was valid; an error must blame the request and have a message."""
    table, params = request
    try:
        result = predict(table, params)
    except MlflowException as error:
        rejection = error
    else:
        check_result(result, table, params if isinstance(params, dict) else {})
        return True
    assert rejection.error_code == "INVALID_PARAMETER_VALUE", rejection
    assert len(rejection.message) > 20
    return False


@pytest.mark.slow
def test_no_request_crashes_the_model(tmp_path: Path) -> None:
    """Invalid columns, lists, parameters and rules, alone and combined, only cause errors that blame the request."""
    model = RecommenderModel()
    model.load_context(PythonModelContext({"bundle": str(write_trained_bundle(tmp_path / "made"))}, None))
    requests = RandomRequests(seed=6)
    valid = [send(lambda *request: model.predict(None, *request), requests.draw()) for _ in range(10_000)]
    assert 500 < sum(valid) < 2_000


def test_no_request_crashes_the_model_that_mlflow_loads(tmp_path: Path) -> None:
    """The same holds behind the signature, whose checks by MLflow let through all that the model has to validate."""
    bundle = write_trained_bundle(tmp_path / "made")
    save_bundle_model(bundle, tmp_path / "model", identity=Model())
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    requests = RandomRequests(seed=7)
    valid = [send(lambda table, params: loaded.predict(table, params=params), requests.draw()) for _ in range(200)]
    assert 15 < sum(valid) < 60
