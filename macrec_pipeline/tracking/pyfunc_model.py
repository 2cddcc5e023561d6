"""The registered model as MLflow loads it: a script that is stored next to the bundle and a copy of the package's code.

`RecommenderModel.predict` takes a DataFrame with one row per user and these columns:

- `history`: a list of item ids, oldest first; null or empty for a user without a history;
- optionally `allowed`, `excluded`, `allowed_categories` and `excluded_categories`, the business rules of the row: each
  a list of item ids or categories, or null for no rule;
- optionally `exclude_seen`: true, false, or null to use the parameter of that name;
- optionally `user_id`, for the caller's own use.

The parameters are `k`, `route`, `exclude_seen`, `beam_width`, `rules`, which maps the names of the rule columns to
rules for all rows, `explain`, and how diverse the lists are: `diversity`, `max_per_category`, `max_per_prefix` and
`prefix_length`. A limit in a request replaces both limits of the bundle's settings.

It returns one row per input row, with the index preserved: `item_ids` and `scores`, best first, and `fallback`, which
is "none" or "popularity". With `explain`, it also returns `explanations`, a list with one dictionary per item.

Neither Dagster nor polars is needed to serve the model. This is the only module of the package that acts when it is
imported, since MLflow's models-from-code requires `set_model`, and the only one in `tracking` that imports the
recommender (docs/decisions/005-pyfunc-knows-the-recommender.md).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE, RESOURCE_DOES_NOT_EXIST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from macrec_pipeline.errors import RequestError, StorageError, UnknownItemError

if TYPE_CHECKING:
    from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules

DEFAULTS: dict[str, Any] = {
    "k": 10,
    "route": "fused",
    "exclude_seen": False,
    "beam_width": 0,
    "rules": {},
    "explain": False,
    "diversity": None,
    "max_per_category": None,
    "max_per_prefix": None,
    "prefix_length": None,
}
"""The default of each parameter. A beam width of 0 and a null stand for the bundle's own setting."""

DIVERSITY = ("diversity", "max_per_category", "max_per_prefix", "prefix_length")
"""The parameters that say how diverse the lists are."""

RULES = ("allowed", "excluded", "allowed_categories", "excluded_categories")
"""The business rules, each a list of strings. They are columns of the input, and keys of the parameter `rules`."""
UNSEEN = "exclude_seen"
"""A parameter, and a column of the input."""
CODE = "code"
"""The artifact with the digests of the version's code: a JSON object of paths in the package and SHA-256 digests."""
_PACKAGE = "macrec_pipeline"


class RecommenderModel(PythonModel):
    """A recommender bundle behind MLflow's interface.

    Attributes:
        bundle: the loaded bundle; its `catalogue` has the titles and image paths of the items.
    """

    bundle: RecommenderBundle

    def load_context(self, context: PythonModelContext) -> None:
        """Load the registered bundle.

        Raises:
            MlflowException: the package that this process has imported is not the code of this version.
            StorageError: the parts of the bundle do not belong together.
        """
        if CODE in context.artifacts:  # not while a bundle is tried before it is registered
            check_code(Path(context.artifacts[CODE]))
        from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle

        self.bundle = RecommenderBundle.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Recommend items for each row. The module's docstring describes the input and the output.

        Raises:
            MlflowException: the request is invalid. Its error code makes a scoring server respond with status 400.
        """
        try:
            routes = ("fused", *self.bundle.routes)
            request = _checked_params(params, num_items=self.bundle.num_items, routes=routes)
            histories = [history or [] for history in _string_lists(model_input, "history")]
            request["diversity"] = self.bundle.diversity.replaced(_diversity(request))
            request[UNSEEN] = _exclude_seen_of_rows(model_input, request[UNSEEN])
            results = self.bundle.recommend_ids(histories, **request, rules_of_rows=_rules_of_rows(model_input))
        except RequestError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        columns: dict[str, list[Any]] = {
            "item_ids": [list(recommendation.item_ids) for recommendation in results],
            "scores": [[float(score) for score in recommendation.scores] for recommendation in results],
            "fallback": [recommendation.fallback for recommendation in results],
        }
        if request["explain"]:
            columns["explanations"] = [
                [asdict(explanation) for explanation in recommendation.explanations or ()] for recommendation in results
            ]
        return pd.DataFrame(columns, index=model_input.index, dtype=object)

    def similar(
        self,
        item_id: str,
        *,
        k: int = 10,
        method: str | None = None,
        modality: str | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Find the items that are most similar to an item; see `RecommenderBundle.similar_items`.

        MLflow serves `predict` alone, so call this on `unwrap_python_model()` of the loaded model.

        Args:
            item_id: of an item in the catalogue.
            k: number of items.
            method: "latent", "embedding" or "prefix"; None for the first one that the bundle supports.
            modality: "text" or "image"; None for both.
            rules: as the parameter `rules` of `predict`.

        Returns:
            `item_ids` and `scores`, most similar first, and `method`.

        Raises:
            MlflowException: the request is invalid; status 404 if the catalogue has no such item, and 400 otherwise.
        """
        try:
            found = self.bundle.similar_items(
                item_id, k=k, method=method, modality=modality, rules=_shared_rules(rules or {})
            )
        except UnknownItemError as error:
            raise MlflowException(str(error), error_code=RESOURCE_DOES_NOT_EXIST) from error
        except (RequestError, StorageError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return asdict(found)


def _checked_params(params: Any, *, num_items: int, routes: Sequence[str]) -> dict[str, Any]:
    """Validate the parameters, and return them with defaults as arguments of `RecommenderBundle.recommend_ids`."""
    if params is not None and not isinstance(params, Mapping):
        raise RequestError(f"`params` must map names to values, but is {type(params).__name__} {params!r:.80}.")
    given = {name: value for name, value in (params or {}).items() if value is not None}
    if unknown := sorted(given.keys() - DEFAULTS.keys(), key=str):
        raise RequestError(f"Unknown parameter {unknown[0]!r}. The parameters are {', '.join(DEFAULTS)}.")
    checked = DEFAULTS | given
    for name, minimum in (("k", 1), ("beam_width", 0)):
        value = checked[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
            raise RequestError(f"`{name}` must be a whole number of at least {minimum}, but is {value!r:.80}.")
        checked[name] = int(value)
    if checked["k"] > num_items:
        raise RequestError(f"`k` is {checked['k']}, but the catalogue has only {num_items} items.")
    if not isinstance(checked["route"], str) or checked["route"] not in routes:
        raise RequestError(f"`route` must be one of {', '.join(routes)}, but is {checked['route']!r:.80}.")
    return checked | {
        UNSEEN: _checked_bool(checked[UNSEEN], what=f"`{UNSEEN}`"),
        "beam_width": checked["beam_width"] or None,
        "explain": _checked_bool(checked["explain"], what="`explain`"),
        "rules": _shared_rules(checked["rules"]),
    }


def _diversity(request: dict[str, Any]) -> dict[str, float]:
    """Take the options of diversity out of a request, without those that are null."""
    given: dict[str, Any] = {name: value for name in DIVERSITY if (value := request.pop(name)) is not None}
    for name, value in given.items():
        kind: type[Any] = Real if name == "diversity" else Integral
        if not isinstance(value, kind) or isinstance(value, bool):
            what = "a number from 0 to 1" if kind is Real else "a whole number of at least 0"
            raise RequestError(f"`{name}` must be {what}, but is {value!r:.80}.")
        given[name] = float(value) if kind is Real else int(value)
    return given


def _shared_rules(value: Any) -> Rules | None:
    """Validate the parameter `rules`, which applies to all rows."""
    if not isinstance(value, Mapping) or not value.keys() <= set(RULES):
        raise RequestError(f"`rules` must map any of {', '.join(RULES)} to lists, but is {value!r:.80}.")
    return _rules({name: _checked_strings(cell, name, where="`rules`") for name, cell in value.items()})


def _rules_of_rows(model_input: pd.DataFrame) -> list[Rules | None]:
    """Read the rules of each row from the rule columns that the input has."""
    columns = {name: _string_lists(model_input, name) for name in RULES if name in model_input.columns}
    return [_rules({name: cells[row] for name, cells in columns.items()}) for row in range(len(model_input))]


def _exclude_seen_of_rows(model_input: pd.DataFrame, default: bool) -> bool | list[bool]:
    """Read whether each row excludes seen items; a single value if the input has no such column."""
    if UNSEEN not in model_input.columns:
        return default
    cells = _column(model_input, UNSEEN, "true, false or null")
    return [
        default if _is_null(cell) else _checked_bool(cell, what=f"`{UNSEEN}` in row {row}")
        for row, cell in enumerate(cells)
    ]


def _checked_bool(value: Any, *, what: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{what} must be true or false, but is {value!r:.80}.")
    return bool(value)


def _rules(lists: Mapping[str, list[str] | None]) -> Rules | None:
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules

    given = {name: strings for name, strings in lists.items() if strings is not None}
    return Rules(**given) if given else None


def _string_lists(model_input: Any, column: str) -> list[list[str] | None]:
    """Read a column of lists of strings; None where a cell is null."""
    cells = _column(model_input, column, f"lists of {_content_of(column)}")
    return [_checked_strings(cell, column, where=f"row {row}") for row, cell in enumerate(cells)]


def _column(model_input: Any, column: str, content: str) -> pd.Series:
    is_table = isinstance(model_input, pd.DataFrame)
    if not is_table or [name for name in model_input.columns if isinstance(name, str)].count(column) != 1:
        # MLflow drops columns that the signature does not name, so a misspelt column may be missing here
        found = f"has the columns {list(model_input.columns)}" if is_table else f"is {type(model_input).__name__}"
        raise RequestError(f"The input must be a table with one column {column!r} ({content}), but {found:.200}.")
    return model_input[column]


def _checked_strings(cell: Any, name: str, *, where: str) -> list[str] | None:
    """Validate a cell that must be null or a list of strings; `name` and `where` locate it in error messages."""
    if _is_null(cell):
        return None
    content = _content_of(name)
    if not isinstance(cell, list | tuple) and not (isinstance(cell, np.ndarray) and cell.ndim == 1):
        order = ", oldest first" if name == "history" else ""
        found = f"{type(cell).__name__} {cell!r:.80}"
        raise RequestError(f"`{name}` in {where} must be a list of {content}{order}, but is {found}.")
    for position, text in enumerate(cell):
        if not isinstance(text, str):
            raise RequestError(
                f"`{name}` in {where} contains {text!r:.80} at position {position}, but {content} must be strings, as "
                "in the catalogue. Convert them to strings, and leave out missing ones."
            )
    return [str(text) for text in cell]


def _content_of(name: str) -> str:
    return "categories" if "categories" in name else "item ids"


def _is_null(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and bool(np.isnan(cell)))


def check_code(manifest: Path) -> None:
    """Compare the code of a version with the package that this process has imported.

    MLflow puts the code of a version on the import path, but Python keeps using a package that was imported before.
    Without this check, the second version that a process loads would silently run with the code of the first.

    Args:
        manifest: the artifact `CODE`.

    Raises:
        MlflowException: a file of the package is missing or different.
    """
    expected: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))
    imported = Path(sys.modules[_PACKAGE].__file__ or "").parent
    found = code_digests(imported, expected)
    if differing := sorted(name for name in expected if found.get(name) != expected[name]):
        more = f" and {len(differing) - 1} more of its files differ" if len(differing) > 1 else " differs"
        raise MlflowException(
            f"This version of the model was registered with other code than the package {_PACKAGE} that this process "
            f"has imported from {imported}: {differing[0]}{more}. Python keeps the first copy of a package that a "
            "process imports. Load this version in a new process that has not imported the package, or use "
            "`macrec serve`, which runs each version in a process of its own.",
            error_code=INVALID_STATE,
        )


def code_digests(package: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 digests, hexadecimal, of those files of a package that exist.

    Args:
        package: the folder of the package.
        names: paths of files within it, with forward slashes.
    """
    files = {name: package / name for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


mlflow.models.set_model(RecommenderModel())
