"""The evaluation report logs figures about cold start and determined targets to MLflow, under names that it accepts."""

from mlflow.utils.validation import _validate_metric_name

from macrec_pipeline.defs.assets.evaluation import list_metrics, special_metrics


def _part(value: float) -> dict[str, object]:
    return {"num_users": 1, "systems": {"macrec": {"hr_10": 1.0, "ndcg_10": value, "ndcg_10_ci": [0.0, 1.0]}}}


def test_cold_start_and_determined_targets_are_metrics() -> None:
    """Bands of training interactions, shares of new items, and both settings of determined targets are logged."""
    system = {"hr_1": 0.1, "hr_10": 0.5, "ndcg_10": 0.25, "hr_10_ci": [0.4, 0.6]}
    metrics = {
        "num_test_users": 10,
        "determined_targets": {
            "num_test_users": 4,
            "systems": {"sasrec": system},
            "systems_excluding_seen": {"sasrec": {**system, "hr_10": 0.75}},
        },
        "slices": {
            "target_training_interactions": {"0": _part(0.125), "1-2": _part(0.5), "10+": _part(0.625)},
            "history_length": {"1-4": _part(0.0)},
        },
        "new_items": {"num_items": 3, "systems": {"popularity": {"share": 0.0625, "share_ci": [0, 1], "num_items": 2}}},
    }
    assert special_metrics(metrics) == {
        "popularity/new_items_share": 0.0625,
        "macrec/ndcg_10_target_trained_0": 0.125,
        "macrec/ndcg_10_target_trained_1-2": 0.5,
        "macrec/ndcg_10_target_trained_10_or_more": 0.625,
        "undetermined_targets": 6.0,
        "determined_targets/sasrec/hr_10": 0.5,
        "determined_targets/sasrec/ndcg_10": 0.25,
        "determined_targets/excluding_seen/sasrec/hr_10": 0.75,
        "determined_targets/excluding_seen/sasrec/ndcg_10": 0.25,
    }
    without_ties = special_metrics({**metrics, "num_test_users": 4})
    assert {name: value for name, value in without_ties.items() if "determined" in name} == {
        "undetermined_targets": 0.0
    }
    for name in special_metrics(metrics):
        _validate_metric_name(name)


def test_without_determined_targets_only_their_number_is_logged() -> None:
    """If the data determine no target, there are no metrics of such users."""
    metrics = {
        "num_test_users": 10,
        "determined_targets": {"num_test_users": 0, "systems": {}, "systems_excluding_seen": {}},
        "slices": {"target_training_interactions": {"3-9": _part(0.5)}},
        "new_items": {"systems": {}},
    }
    assert special_metrics(metrics) == {"undetermined_targets": 10.0, "macrec/ndcg_10_target_trained_3-9": 0.5}


def test_mlflow_gets_the_figures_about_lists_that_exist() -> None:
    """One metric per system and setting; a figure that could not be measured is left out."""
    quality = {"intra_list_diversity": None, "novelty": 7.5, "exposure_gini": 0.25, "debiased_ndcg_10": 0.125}
    systems = {"systems": {"macrec": quality}, "systems_excluding_seen": {"sasrec": quality | {"novelty": None}}}
    assert list_metrics({"beyond_accuracy": {"definitions": {}, **systems}}) == {
        "macrec/novelty": 7.5,
        "macrec/exposure_gini": 0.25,
        "macrec/debiased_ndcg_10": 0.125,
        "excluding_seen/sasrec/exposure_gini": 0.25,
        "excluding_seen/sasrec/debiased_ndcg_10": 0.125,
    }
