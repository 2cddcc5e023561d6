"""The registered model as MLflow loads it: a script that stands beside the bundle and the package's code.

In: a DataFrame with the column `history` (a list of item ids a row, oldest first; null or empty for a user without
one), optional columns `allowed`, `excluded`, `allowed_categories` and `excluded_categories` (the rules of a row: a list
of item ids or categories, null for no rule), `exclude_seen` (null for the param's) and `user_id`, which is for the
caller's own use; params `k`, `route`, `exclude_seen`, `beam_width` and `rules`, the rules of all rows by these names.
Out: a DataFrame with one row a row: `item_ids` and `scores`, best first, and `fallback` ("none" or "popularity").

A consumer needs neither Dagster nor polars. This is the only module of the package that acts when it is imported
(MLflow's models-from-code asks for `set_model`), and the only one of `tracking` that knows the recommender.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from macrec_pipeline.errors import RequestError

if TYPE_CHECKING:
    from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules

DEFAULTS: dict[str, Any] = {"k": 10, "route": "fused", "exclude_seen": False, "beam_width": 0, "rules": {}}
"""The params and what each is if it is not given; a beam width of 0 is the bundle's own."""

RULES = ("allowed", "excluded", "allowed_categories", "excluded_categories")
"""The rules, each a list of strings: columns of the input, and entries of the param `rules`."""
UNSEEN = "exclude_seen"
"""A param, and a column of the input."""


class RecommenderModel(PythonModel):
    """A recommender bundle behind MLflow's interface.

    Attributes:
        bundle: the loaded bundle; its `catalogue` has the titles and pictures of the items.
    """

    bundle: RecommenderBundle

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that was registered. Raises `StorageError` if its parts do not belong together."""
        from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle

        self.bundle = RecommenderBundle.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Recommend items to each row.

        Raises:
            MlflowException: what was asked cannot be answered; its code makes a scoring server say 400.
        """
        try:
            routes = ("fused", *self.bundle.routes)
            asked = _checked_params(params, num_items=self.bundle.num_items, routes=routes)
            histories = [history or [] for history in _lists(model_input, "history")]
            asked[UNSEEN] = _unseen_of_rows(model_input, asked[UNSEEN])
            answers = self.bundle.recommend_ids(histories, **asked, rules_of_rows=_rules_of_rows(model_input))
        except RequestError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        columns = {
            "item_ids": [list(answer.item_ids) for answer in answers],
            "scores": [[float(score) for score in answer.scores] for answer in answers],
            "fallback": [answer.fallback for answer in answers],
        }
        return pd.DataFrame(columns, index=model_input.index, dtype=object)


def _checked_params(params: Any, *, num_items: int, routes: Sequence[str]) -> dict[str, Any]:
    if params is not None and not isinstance(params, Mapping):
        raise RequestError(f"params must map names to values, got {type(params).__name__} {params!r:.80}.")
    given = {name: value for name, value in (params or {}).items() if value is not None}
    if unknown := sorted(given.keys() - DEFAULTS.keys(), key=str):
        raise RequestError(f"There is no param {unknown[0]!r}. Use: {', '.join(DEFAULTS)}.")
    asked = DEFAULTS | given
    for name, lowest in (("k", 1), ("beam_width", 0)):
        value = asked[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or value < lowest:
            raise RequestError(f"{name} must be a whole number of at least {lowest}, got {value!r:.80}.")
        asked[name] = int(value)
    if asked["k"] > num_items:
        raise RequestError(f"k is {asked['k']}, but the catalogue has only {num_items} items.")
    if not isinstance(asked["route"], str) or asked["route"] not in routes:
        raise RequestError(f"route must be one of {', '.join(routes)}, got {asked['route']!r:.80}.")
    return asked | {
        UNSEEN: _truth(asked[UNSEEN], what=UNSEEN),
        "beam_width": asked["beam_width"] or None,
        "rules": _rules_of_call(asked["rules"]),
    }


def _rules_of_call(given: Any) -> Rules | None:
    if not isinstance(given, Mapping) or not given.keys() <= set(RULES):
        raise RequestError(f"rules must map {', '.join(RULES)} to lists, got {given!r:.80}.")
    return _rules({name: _strings(cell, what=f"{name} of rules") for name, cell in given.items()})


def _rules_of_rows(model_input: pd.DataFrame) -> list[Rules | None]:
    columns = {name: _lists(model_input, name) for name in RULES if name in model_input.columns}
    return [_rules({name: cells[row] for name, cells in columns.items()}) for row in range(len(model_input))]


def _unseen_of_rows(model_input: pd.DataFrame, of_call: bool) -> bool | list[bool]:
    """Whether seen items are left out; one a row only where the rows say so."""
    if UNSEEN not in model_input.columns:
        return of_call
    cells = _column(model_input, UNSEEN, "true, false or null")
    return [
        of_call if _is_null(cell) else _truth(cell, what=f"{UNSEEN} of row {row}") for row, cell in enumerate(cells)
    ]


def _truth(value: Any, *, what: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{what} must be true or false, got {value!r:.80}.")
    return bool(value)


def _rules(lists: Mapping[str, list[str] | None]) -> Rules | None:
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules

    named = {name: strings for name, strings in lists.items() if strings is not None}
    return Rules(**named) if named else None


def _lists(model_input: Any, column: str) -> list[list[str] | None]:
    """The lists of a column; None where a cell is null."""
    cells = _column(model_input, column, f"lists of {_content(column)}")
    return [_strings(cell, what=f"{column} of row {row}") for row, cell in enumerate(cells)]


def _column(model_input: Any, column: str, content: str) -> pd.Series:
    is_table = isinstance(model_input, pd.DataFrame)
    if not is_table or [name for name in model_input.columns if isinstance(name, str)].count(column) != 1:
        # MLflow has left out the columns that the signature does not name.
        got = list(model_input.columns) or "none" if is_table else type(model_input).__name__
        raise RequestError(f"The input must be a table with one column {column!r} ({content}), got {got!s:.200}.")
    return model_input[column]


def _strings(cell: Any, *, what: str) -> list[str] | None:
    if _is_null(cell):
        return None
    if not isinstance(cell, list | tuple) and not (isinstance(cell, np.ndarray) and cell.ndim == 1):
        order = ", oldest first" if what.startswith("history") else ""
        raise RequestError(f"{what} must be a list of {_content(what)}{order}, got {type(cell).__name__} {cell!r:.80}.")
    for position, text in enumerate(cell):
        if not isinstance(text, str):
            raise RequestError(
                f"{what} holds {text!r:.80} at position {position}: {_content(what)} are strings, as in the catalogue. "
                "Turn them into strings, and leave missing ones out."
            )
    return [str(text) for text in cell]


def _content(column: str) -> str:
    return "categories" if "categories" in column else "item ids"


def _is_null(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and bool(np.isnan(cell)))


mlflow.models.set_model(RecommenderModel())
