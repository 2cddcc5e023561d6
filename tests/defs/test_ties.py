"""Runs say how many interactions are tied, and how many test targets the data do not determine."""

from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.data.ties import tie_warning
from macrec_pipeline.defs.assets.interactions import clean_tables, histories, raw_interactions, raw_items
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.tracking.store import connect

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _materialize(settings: Settings, partition: str) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [raw_interactions, raw_items, clean_tables, histories],
        partition_key=partition,
        resources={"settings": settings},
        run_config=QUIET,
    )


def _metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    by_key = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    return {name: value.value for name, value in by_key[asset].items()}


def _set_times(settings: Settings, times: list[int]) -> None:
    """Give the interactions of each user these times, which are the same for all users."""
    log = Path(settings.data) / "log.csv"
    header, *rows = log.read_text(encoding="utf-8").splitlines()
    changed = [f"{row.rpartition(',')[0]},{times[number % len(times)]}" for number, row in enumerate(rows)]
    log.write_text("\n".join([header, *changed]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("times", "tied_share", "undetermined"),
    [
        ([1, 1, 2, 3, 3, 4], 4 / 6, 0),
        ([1, 1, 2, 3, 3, 3], 5 / 6, 10),
    ],
    ids=["ties before the target", "a tied target"],
)
def test_metadata_state_the_share_of_ties(
    settings: Settings, partition: str, times: list[int], tied_share: float, undetermined: int
) -> None:
    """Dagster and MLflow receive the same numbers."""
    _set_times(settings, [1_600_000_000 + time for time in times])
    result = _materialize(settings, partition)
    interactions, of_histories = _metadata(result, "interactions"), _metadata(result, "histories")
    assert interactions["tied_share"] == of_histories["tied_share"] == pytest.approx(tied_share)
    assert (of_histories["test_users"], of_histories["undetermined_targets"]) == (10, undetermined)
    client = connect(Path(settings.home)).client
    runs = client.search_runs([client.get_experiment_by_name(f"macrec/{partition}").experiment_id])
    metrics = {run.data.tags.get("macrec.asset"): run.data.metrics for run in runs}
    assert metrics["interactions"]["tied_share"] == pytest.approx(tied_share)
    assert metrics["histories"]["undetermined_targets"] == undetermined


@pytest.mark.parametrize("rule", ["hash", "item_id", "position"])
def test_rules_whose_order_can_be_learned_are_warned_of(
    settings: Settings, partition: str, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The terminal and Dagster get the same sentence, which says what the order teaches; without ties there is none."""
    _set_times(settings, [1_600_000_000] * 6)
    changed = Settings(home=settings.home, data=settings.data, overrides=[f"cleaning.ties={rule}"])
    with caplog.at_level("INFO", "macrec_pipeline"):
        metadata = _metadata(_materialize(changed, partition), "interactions")
    assert metadata["ties"] == rule
    warnings = [record.getMessage() for record in caplog.records if "share user and time" in record.getMessage()]
    assert warnings == ([] if rule == "hash" else [metadata["ties_warning"]])
    expected = {"item_id": "sorts them by item ID", "position": "leaves them in the order of the lines"}
    assert all(expected[rule] in line and "60 of 60 interactions (100.0%)" in line for line in warnings)
    assert f"`cleaning.ties: {rule}` chose which of them is the target" in caplog.text
    assert "10 of 10 test users (100.0%) have several items at the time of the test target" in caplog.text


def test_without_ties_there_is_nothing_to_warn_of() -> None:
    """The rule does not matter if no two interactions of a user have the same time."""
    assert [tie_warning(rule, num_tied=0, num_rows=60) for rule in ("hash", "item_id", "position")] == [None] * 3
