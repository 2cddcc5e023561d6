"""Convert the `predictions` table to one array per system and check that it contains every test user exactly once.

The input is the `histories` and `predictions` tables. The output is one array of recommendation lists per system and
setting (seen items allowed or excluded). A user who is missing or counted twice would silently change every metric, so
either raises an error that names the system and the user.
Shapes (docs/notation.md): U users, N items in the catalogue; `list_length` is the length of a recommendation list.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, IntArray, padded_lists

FUSED_SYSTEM = "macrec"
POPULARITY, ITEM_KNN, SASREC = "popularity", "item_knn", "sasrec"
BASELINES = (POPULARITY, ITEM_KNN, SASREC)
# The evaluation itself computes the lists of these baselines; they must not be in the table.
COMPUTED_HERE = (POPULARITY, ITEM_KNN)
SystemLists = dict[tuple[str, bool], IntArray]
"""(system, exclude_seen) -> int64 [U, list_length], best item first, padded with `NO_ITEM`."""


def predicted_lists(
    histories: pl.DataFrame, predictions: pl.DataFrame, *, flat: FlatHistories, num_items: int
) -> SystemLists:
    """Collect the lists of every system, with users in the order of `histories`.

    Args:
        histories: schema HISTORIES.
        predictions: schema PREDICTIONS.
        flat: the same histories, flattened.
        num_items: N, the size of the catalogue.

    Returns:
        The lists of the fused system, then those of the other systems by name.

    Raises:
        DataError: a system lacks a test user, contains one twice or an unknown one; a list repeats an item or contains
            one outside the catalogue; or a list contains a seen item although seen items are excluded.
    """
    systems = predictions["system"].unique().sort().to_list()
    if FUSED_SYSTEM not in systems:
        raise DataError(
            f"predictions has no rows of the system {FUSED_SYSTEM!r}, only of {systems}. Materialize predictions again."
        )
    if unexpected := set(systems) & set(COMPUTED_HERE):
        raise DataError(
            f"predictions contains rows of {sorted(unexpected)}, which the evaluation computes itself. Remove them."
        )
    lists: SystemLists = {}
    users, items = flat.without_last(1)
    seen_keys = np.sort(users * num_items + items)
    for system in (FUSED_SYSTEM, *(name for name in systems if name != FUSED_SYSTEM)):
        for exclude_seen in (False, True):
            rows = predictions.filter((pl.col("system") == system) & (pl.col("exclude_seen") == exclude_seen))
            where = f"predictions of {system!r} with exclude_seen={exclude_seen}"
            if not rows["user_index"].equals(histories["user_index"]):  # the asset writes them in this order
                _check_users(histories["user_index"], rows["user_index"], where=where)
                rows = histories.select("user_index").join(
                    rows, on="user_index", how="left", maintain_order="left", validate="1:1"
                )
            lists[system, exclude_seen] = padded_lists(rows["item_indices"], where=where, num_items=num_items)

    def check(system: str) -> None:
        _check_excludes_seen(histories, lists[system, True], seen_keys, system=system, num_items=num_items)

    with ThreadPoolExecutor() as pool:  # NumPy releases the GIL during the searches
        list(pool.map(check, (system for system, exclude_seen in lists if exclude_seen)))
    return lists


def _check_users(expected: pl.Series, found: pl.Series, *, where: str) -> None:
    duplicated = found.filter(found.is_duplicated())
    if len(duplicated):
        raise DataError(
            f"{where}: user_index {duplicated[0]} appears more than once, but each test user must appear once. "
            "Materialize predictions again."
        )
    missing = expected.filter(~expected.is_in(found.implode()))
    if len(missing):
        raise DataError(
            f"{where}: {len(missing)} of {len(expected)} test users are missing, the first is user_index {missing[0]}. "
            "Materialize predictions again."
        )
    unknown = found.filter(~found.is_in(expected.implode()))
    if len(unknown):
        raise DataError(
            f"{where}: user_index {unknown[0]} is not in histories. The tables come from different runs; "
            "materialize them together."
        )


def _check_excludes_seen(
    histories: pl.DataFrame, lists: IntArray, seen_keys: IntArray, *, system: str, num_items: int
) -> None:
    """Raise if a list contains an item of the user's input history.

    Args:
        histories: source of the user_index in the error message.
        lists: int64 [U, list_length], padded with `NO_ITEM`.
        seen_keys: user * N + item of every interaction in the input histories, ascending.
        system: name for the error message.
        num_items: N, the size of the catalogue.
    """
    if not len(seen_keys) or not lists.size:
        return
    keys = (np.arange(len(lists))[:, None] * num_items + lists).ravel()
    nearest = np.minimum(np.searchsorted(seen_keys, keys), len(seen_keys) - 1)  # ascending: cache-friendly
    is_seen = (seen_keys[nearest] == keys) & (lists.ravel() != NO_ITEM)
    if is_seen.any():
        row, place = divmod(int(is_seen.argmax()), lists.shape[1])
        raise DataError(
            f"predictions of {system!r} with exclude_seen=True: the list of user_index {histories['user_index'][row]} "
            f"contains item {lists[row, place]}, which is in the user's history. Materialize predictions again."
        )
