"""From the `predictions` table to one array a system, with every test user in it exactly once.

What enters: `histories` and `predictions`. What leaves: int64 [U, R] lists a system and setting, or an error that
names the system and the user: a user who is left out or counted twice moves every metric in silence.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, IntArray, padded_lists

FUSED_SYSTEM = "macrec"
POPULARITY, ITEM_KNN, SASREC = "popularity", "item_knn", "sasrec"
BASELINES = (POPULARITY, ITEM_KNN, SASREC)
COMPUTED_HERE = (POPULARITY, ITEM_KNN)
Lists = dict[tuple[str, bool], IntArray]


def predicted_lists(
    histories: pl.DataFrame, predictions: pl.DataFrame, *, flat: FlatHistories, num_items: int
) -> Lists:
    """One array a system and setting, rows in the order of `histories`; the fused system first, then by name.

    Args:
        histories: schema HISTORIES.
        predictions: schema PREDICTIONS.
        flat: the same histories, flattened.
        num_items: N.

    Returns:
        (system, exclude_seen) -> int64 [U, R], padded with `NO_ITEM`.

    Raises:
        DataError: a user is missing, doubled or unknown in a system, a list names an item twice or one outside the
            catalogue, or names a seen item although those are excluded.
    """
    systems = predictions["system"].unique().sort().to_list()
    if FUSED_SYSTEM not in systems:
        raise DataError(f"predictions holds no rows of system {FUSED_SYSTEM!r}, only {systems}. Materialize it again.")
    taken = set(systems) & set(COMPUTED_HERE)
    if taken:
        raise DataError(f"predictions holds rows of {sorted(taken)}: the evaluation computes those itself.")
    lists: Lists = {}
    users, items = flat.without_last(1)
    seen = np.sort(users * num_items + items)
    for system in (FUSED_SYSTEM, *(name for name in systems if name != FUSED_SYSTEM)):
        for exclude_seen in (False, True):
            rows = predictions.filter((pl.col("system") == system) & (pl.col("exclude_seen") == exclude_seen))
            where = f"predictions of {system!r} with exclude_seen={exclude_seen}"
            if not rows["user_index"].equals(histories["user_index"]):  # as predictions writes them, they are
                _check_users(histories["user_index"], rows["user_index"], where=where)
                rows = histories.select("user_index").join(
                    rows, on="user_index", how="left", maintain_order="left", validate="1:1"
                )
            lists[system, exclude_seen] = padded_lists(rows["item_indices"], where=where, num_items=num_items)

    def check(system: str) -> None:
        _check_unseen(histories, lists[system, True], seen, system=system, num_items=num_items)

    with ThreadPoolExecutor() as pool:  # looking up frees the interpreter
        list(pool.map(check, (system for system, exclude_seen in lists if exclude_seen)))
    return lists


def _check_users(expected: pl.Series, found: pl.Series, *, where: str) -> None:
    doubled = found.filter(found.is_duplicated())
    if len(doubled):
        raise DataError(f"{where}: user_index {doubled[0]} is there more than once; every test user counts once.")
    missing = expected.filter(~expected.is_in(found.implode()))
    if len(missing):
        raise DataError(
            f"{where}: {len(missing)} of {len(expected)} test users are missing, the first is user_index {missing[0]}. "
            "Every test user counts; materialize predictions again."
        )
    unknown = found.filter(~found.is_in(expected.implode()))
    if len(unknown):
        raise DataError(
            f"{where}: user_index {unknown[0]} is not in histories. The tables come from different runs; "
            "materialize them together."
        )


def _check_unseen(histories: pl.DataFrame, lists: IntArray, seen: IntArray, *, system: str, num_items: int) -> None:
    """Raise if a list names an item of the user's input; `seen` holds user * N + item of all inputs, ascending."""
    if not len(seen) or not lists.size:
        return
    shown = (np.arange(len(lists))[:, None] * num_items + lists).ravel()
    nearest = np.minimum(np.searchsorted(seen, shown), len(seen) - 1)  # rows ascend: look-ups stay close
    repeated = (seen[nearest] == shown) & (lists.ravel() != NO_ITEM)
    if repeated.any():
        row, place = divmod(int(repeated.argmax()), lists.shape[1])
        raise DataError(
            f"predictions of {system!r} with exclude_seen=True: user_index {histories['user_index'][row]} is given "
            f"item {lists[row, place]}, which is in the user's history."
        )
