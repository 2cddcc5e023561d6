"""The protocol counts every test user once in every system, is reproducible, and rejects invalid input."""

import json

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import ConfigError, DataError
from macrec_pipeline.evaluation import Evaluation, evaluate, metrics_document
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS
from tests.evaluation.conftest import SASREC_SETTINGS

SYSTEMS = ["macrec", "macrec_image", "macrec_text", "popularity", "item_knn", "sasrec"]
NUM_ITEMS = 30


def _evaluate(
    histories: pl.DataFrame, predictions: pl.DataFrame, config: EvaluationConfig, **more: object
) -> Evaluation:
    return evaluate(histories, predictions, num_items=NUM_ITEMS, config=config, seed=3, **more)  # type: ignore[arg-type]


def test_every_system_is_measured_with_intervals_in_both_settings(evaluation: Evaluation) -> None:
    """HR and NDCG at each cutoff, MRR and coverage lie in [0, 1], and each has an interval that contains it."""
    expected = {f"{name}_{cutoff}" for name in ("hr", "ndcg") for cutoff in (1, 5, 10, 20)} | {"mrr", "coverage"}
    for systems in (evaluation.systems, evaluation.systems_excluding_seen):
        assert list(systems) == SYSTEMS
        for values in systems.values():
            assert set(values) == expected | {f"{name}_ci" for name in expected}
            for name in expected:
                low, high = values[f"{name}_ci"]  # type: ignore[misc]
                assert 0 <= low <= values[name] <= high <= 1


def test_per_user_ranks_give_the_metrics(evaluation: Evaluation, histories: pl.DataFrame) -> None:
    """The table of ranks has each user once per system and setting, and its means are the reported metrics."""
    table = evaluation.per_user
    assert table.columns == ["user_index", "system", "exclude_seen", "rank"]
    assert table.height == len(SYSTEMS) * 2 * histories.height
    assert not table.select("user_index", "system", "exclude_seen").is_duplicated().any()
    fused = table.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
    assert evaluation.systems["macrec"]["hr_5"] == pytest.approx((fused["rank"].fill_null(99) <= 5).mean())
    assert evaluation.systems["macrec"]["mrr"] == pytest.approx((1 / fused["rank"]).fill_null(0).mean())


def test_ranks_computed_by_hand(small_config: EvaluationConfig) -> None:
    """Three users have their targets at rank 1, at rank 3 and nowhere."""
    histories = pl.DataFrame(
        {
            "user_index": [0, 1, 2],
            "user_id": ["a", "b", "c"],
            "item_indices": [[1, 2, 3, 0], [4, 5, 6, 1], [7, 8, 9, 2]],
        }
    ).with_columns(
        pl.col("item_indices").alias("timestamps"), tested=pl.lit(True), num_at_target_time=pl.lit(1, pl.Int64)
    )
    lists = [[0, 20, 21], [22, 23, 1], [24, 25, 26]]
    predictions = pl.DataFrame(
        [("macrec", setting, user, lists[user], [3.0, 2.0, 1.0]) for setting in (False, True) for user in range(3)],
        schema=PREDICTIONS.columns,
        orient="row",
    )
    fused = _evaluate(HISTORIES.check(histories), predictions, small_config).systems["macrec"]
    assert [fused[name] for name in ("hr_1", "hr_5", "ndcg_5", "mrr", "coverage")] == pytest.approx(
        [1 / 3, 2 / 3, (1 + 0.5) / 3, (1 + 1 / 3) / 3, 9 / 30]
    )


def _tied_users(num_at_target_time: list[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Histories and predictions of users whose targets are at ranks 1, 3, 2 and nowhere with seen items allowed.

    With seen items excluded, the first user's list misses the target and all others are as before.
    """
    histories = pl.DataFrame(
        {
            "user_index": [0, 1, 2, 3],
            "user_id": list("abcd"),
            "item_indices": [[1, 2, 3, 0], [4, 5, 6, 1], [7, 8, 9, 2], [10, 11, 12, 13]],
            "timestamps": [[1, 2, 3, 3], [1, 2, 3, 4], [1, 3, 3, 3], [1, 2, 3, 4]],
            "tested": [True] * 4,
            "num_at_target_time": num_at_target_time,
        },
        schema=HISTORIES.columns,
    )
    lists = [[0, 20, 21], [22, 23, 1], [24, 2, 25], [26, 27, 28]]
    rows = [("macrec", False, user, lists[user], [3.0, 2.0, 1.0]) for user in range(4)]
    rows += [("macrec", True, user, [29, 28, 27] if user == 0 else lists[user], [3.0, 2.0, 1.0]) for user in range(4)]
    return histories, pl.DataFrame(rows, schema=PREDICTIONS.columns, orient="row")


def test_metrics_are_given_for_determined_targets_alone(small_config: EvaluationConfig) -> None:
    """Users with several interactions at the time of the target count in the metrics of all users, but not here.

    Users 1 and 3 are left, with ranks 3 and none.
    """
    found = _evaluate(*_tied_users([2, 1, 3, 1]), small_config)
    assert found.determined.num_test_users == 2
    assert found.systems["macrec"]["ndcg_10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(3)) / 4)
    assert found.systems_excluding_seen["macrec"]["hr_1"] == 0.0
    for systems in (found.determined.systems, found.determined.systems_excluding_seen):
        fused = systems["macrec"]
        assert [fused[name] for name in ("hr_1", "hr_5", "ndcg_10", "mrr")] == pytest.approx([0, 0.5, 0.25, 1 / 6])
        assert fused["hr_10_ci"] == [0.0, 1.0]
        assert set(systems) == set(found.systems)
        assert "coverage" not in fused
    assert found.num_test_users == 4


def test_determined_targets_of_every_user_give_the_metrics_of_all_users(evaluation: Evaluation) -> None:
    """If the data determine every target, the means are those of all users."""
    assert evaluation.determined.num_test_users == evaluation.num_test_users
    for system, values in evaluation.determined.systems.items():
        means = {name: value for name, value in values.items() if not name.endswith("_ci")}
        assert means == pytest.approx({name: evaluation.systems[system][name] for name in means}, rel=1e-12)


def test_without_determined_targets_there_are_no_such_metrics(small_config: EvaluationConfig) -> None:
    """If every target is one of several at its time, the figures of all users stay, and the others are empty."""
    found = _evaluate(*_tied_users([2, 2, 3, 2]), small_config)
    assert (found.determined.num_test_users, found.determined.systems) == (0, {})
    assert found.systems["macrec"]["hr_5"] == 0.75


def test_the_same_seed_gives_the_same_numbers(
    evaluation: Evaluation, histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """A second evaluation is identical, and another seed changes the intervals but not the means."""
    again = _evaluate(histories, predictions, small_config)
    assert again.systems == evaluation.systems
    assert again.comparisons == evaluation.comparisons
    assert_frame_equal(again.per_user, evaluation.per_user)
    other = evaluate(histories, predictions, num_items=NUM_ITEMS, config=small_config, seed=4)
    assert other.systems["macrec"]["hr_10"] == evaluation.systems["macrec"]["hr_10"]
    assert other.systems["macrec"]["hr_10_ci"] != evaluation.systems["macrec"]["hr_10_ci"]


def test_the_fused_system_is_compared_with_every_other(evaluation: Evaluation) -> None:
    """Every other system is compared once per setting, by the difference in the reported NDCG@10."""
    found = [(comparison.against, comparison.exclude_seen) for comparison in evaluation.comparisons]
    assert sorted(found) == sorted((system, setting) for system in SYSTEMS[1:] for setting in (False, True))
    for comparison in evaluation.comparisons:
        systems = evaluation.systems_excluding_seen if comparison.exclude_seen else evaluation.systems
        difference = systems["macrec"]["ndcg_10"] - systems[comparison.against]["ndcg_10"]  # type: ignore[operator]
        assert comparison.result.difference == pytest.approx(difference)


def test_headline_metrics_are_measured_for_any_cutoffs(histories: pl.DataFrame, predictions: pl.DataFrame) -> None:
    """HR@10 and NDCG@10 are measured even if 10 is not among the configured cutoffs."""
    found = _evaluate(histories, predictions, EvaluationConfig(cutoffs=(3,), bootstrap_samples=10))
    assert {"hr_3", "hr_10", "ndcg_10"} <= set(found.systems["macrec"])


def test_ranks_beyond_the_list_length_are_misses(
    histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """Lists longer than top_k are cut for all systems, and MRR ignores lower ranks."""
    config = small_config.model_copy(update={"cutoffs": (1, 5)})
    found = _evaluate(histories, predictions, config, top_k=5)
    assert found.per_user["rank"].max() == 5
    assert found.protocol["mrr_depth"] == 5


def test_lists_shorter_than_a_cutoff_are_rejected(
    histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """HR@20 of lists with ten items would silently be too low."""
    with pytest.raises(ConfigError, match=r"k=20.*decoding\.top_k"):
        _evaluate(histories, predictions, small_config, top_k=10)


def test_a_repeated_target_is_counted_and_reported(small_config: EvaluationConfig) -> None:
    """A target that repeats an earlier item stays a target in both settings, and the protocol counts such targets."""
    histories = pl.DataFrame({"user_index": [0], "user_id": ["a"], "item_indices": [[1, 2, 3, 1]]}).with_columns(
        pl.col("item_indices").alias("timestamps"), tested=pl.lit(True), num_at_target_time=pl.lit(1, pl.Int64)
    )
    rows = [("macrec", False, 0, [1], [0.0]), ("macrec", True, 0, [5], [0.0])]
    predictions = pl.DataFrame(rows, schema=PREDICTIONS.columns, orient="row")
    found = _evaluate(HISTORIES.check(histories), predictions, small_config)
    assert found.protocol["test_targets_seen_before"] == 1
    assert (found.systems["macrec"]["hr_1"], found.systems_excluding_seen["macrec"]["hr_1"]) == (1.0, 0.0)


def _corrupt(predictions: pl.DataFrame, how: str) -> pl.DataFrame:
    one = (pl.col("system") == "macrec_text") & pl.col("exclude_seen") & (pl.col("user_index") == 7)
    if how == "missing":
        return predictions.filter(~one)
    if how == "unknown":
        return predictions.with_columns(pl.when(one).then(99).otherwise("user_index").alias("user_index")).sort(
            "system", "exclude_seen", "user_index"
        )
    if how == "extra":
        extra = predictions.filter(one).with_columns(pl.lit(99, pl.Int64).alias("user_index"))
        return pl.concat([predictions, extra]).sort("system", "exclude_seen", "user_index")
    if how == "baseline":
        return predictions.with_columns(pl.col("system").replace("macrec_text", "popularity"))
    return predictions.filter(pl.col("system") != "macrec")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "'macrec_text' with exclude_seen=True: 1 of 40 test users are missing.*user_index 7"),
        ("unknown", "1 of 40 test users are missing"),
        ("extra", "user_index 99 is not in histories"),
        ("baseline", "popularity.*the evaluation computes itself"),
        ("no fused system", "no rows of the system 'macrec'"),
    ],
)
def test_missing_and_unknown_users_are_rejected(
    histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig, how: str, message: str
) -> None:
    """A missing or unknown user, or an unexpected or missing system, raises an error that names it."""
    with pytest.raises(DataError, match=message):
        _evaluate(histories, _corrupt(predictions, how), small_config)


def test_a_duplicated_user_is_rejected(
    histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """A user with two lists in one system would count twice; the schema already forbids it."""
    duplicated = pl.concat([predictions.head(1), predictions])
    with pytest.raises(DataError, match="user_index must be unique"):
        _evaluate(histories, duplicated, small_config)


def test_seen_items_in_lists_that_exclude_them_are_rejected(
    histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """Lists with exclude_seen must not contain an item of the input history."""
    seen = histories["item_indices"][3][0]
    one = (pl.col("system") == "macrec") & pl.col("exclude_seen") & (pl.col("user_index") == 3)
    broken = predictions.with_columns(
        pl.when(one).then(pl.lit([seen], pl.List(pl.Int64))).otherwise("item_indices").alias("item_indices")
    )
    with pytest.raises(DataError, match=f"the list of user_index 3 contains item {seen}"):
        _evaluate(histories, broken, small_config)


def test_metrics_document_has_the_agreed_keys(evaluation: Evaluation) -> None:
    """The document has exactly the keys that its readers rely on, and JSON preserves it."""
    rates = {"text": {"before": 0.1, "after": 0.0}, "image": {"before": np.float64(0.2), "after": 0}}
    document = metrics_document(evaluation, dataset="demo", collision_rate=rates)
    assert list(document) == [
        "dataset",
        "num_test_users",
        "num_items",
        "systems",
        "systems_excluding_seen",
        "collision_rate",
        "determined_targets",
        "slices",
        "new_items",
        "beyond_accuracy",
        "beam_agreement",
        "protocol",
    ]
    assert document["num_test_users"] == 40
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_sasrec_is_measured_only_if_it_is_among_the_predictions(
    evaluation: Evaluation, histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """SASRec's lists are measured if the predictions have them; otherwise no metric or setting of it appears."""
    assert evaluation.protocol["sasrec"] == SASREC_SETTINGS
    lists = predictions.filter((pl.col("system") == "sasrec") & ~pl.col("exclude_seen"))["item_indices"].to_list()
    targets = [items[-1] for items in histories["item_indices"].to_list()]
    hits = [target in items[:10] for target, items in zip(targets, lists, strict=True)]
    assert evaluation.systems["sasrec"]["hr_10"] == pytest.approx(np.mean(hits))
    others = predictions.filter(pl.col("system") != "sasrec")
    without = _evaluate(histories, others, small_config)
    assert "sasrec" not in without.systems | without.systems_excluding_seen | without.protocol
    assert "sasrec" not in without.per_user["system"]
    assert "sasrec" not in {comparison.against for comparison in without.comparisons}
    assert without.systems == {name: values for name, values in evaluation.systems.items() if name != "sasrec"}


def test_untested_users_train_the_baselines_but_are_not_measured(small_config: EvaluationConfig) -> None:
    """Two untested users change which item is most popular for the two tested ones; the protocol records the split."""
    histories = pl.DataFrame(
        {
            "user_index": [0, 1, 2, 3],
            "user_id": list("abcd"),
            "item_indices": [[1, 2, 3, 0], [8, 8, 9], [4, 5, 6, 8], [8, 8, 8, 7]],
        }
    ).with_columns(
        pl.col("item_indices").alias("timestamps"),
        tested=pl.Series([True, False, True, False]),
        num_at_target_time=pl.Series([1, None, 1, None], dtype=pl.Int64),
    )
    predictions = pl.DataFrame(
        [("macrec", setting, user, [8, 20], [2.0, 1.0]) for setting in (False, True) for user in (0, 2)],
        schema=PREDICTIONS.columns,
        orient="row",
    )
    found = _evaluate(HISTORIES.check(histories), predictions, small_config, split="by time")
    assert found.num_test_users == 2
    assert found.systems["macrec"]["hr_1"] == found.systems["popularity"]["hr_1"] == 0.5
    assert found.per_user["user_index"].unique().to_list() == [0, 2]
    assert found.protocol["split"] == "by time"
