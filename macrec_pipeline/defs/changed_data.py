"""How much of today's data a model has not seen, which decides for how long its training continues."""

from collections.abc import Mapping
from typing import Any

import polars as pl


def describe_data(histories: pl.DataFrame, *, num_items: int) -> dict[str, int]:
    """Describe `HISTORIES` for a later `changed_share`, as plain values for a manifest."""
    newest = histories["timestamps"].explode().max()
    return {
        "interactions": int(histories["item_indices"].list.len().sum()),
        "items": num_items,
        "newest": int(newest) if newest is not None else 0,  # type: ignore[arg-type] # polars types it as a union
    }


def changed_share(histories: pl.DataFrame, *, num_items: int, before: Mapping[str, Any] | None) -> float:
    """Return the share of the interactions or of the items that are new, whichever is larger.

    An interaction counts as new if it is later than all that there were before. If the log has grown by more than
    that, because older rows came in late, the growth counts.

    Args:
        histories: `HISTORIES` as it is now.
        num_items: items in the catalogue now.
        before: what `describe_data` returned for the earlier data; None if it is unknown, so that everything is new.

    Returns:
        A share in [0, 1].
    """
    if before is None:
        return 1.0
    now = describe_data(histories, num_items=num_items)
    later = int((histories["timestamps"].explode() > before["newest"]).sum())
    new_interactions = max(later, now["interactions"] - before["interactions"])
    new_items = max(0, num_items - before["items"])
    return min(1.0, float(max(new_interactions / max(1, now["interactions"]), new_items / max(1, num_items))))
