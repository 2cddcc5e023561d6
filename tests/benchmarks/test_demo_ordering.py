"""What the demo shop's construction promises, measured by the ablation command's own core.

People of the shop move by a chain of kinds *and* keep to a style. Texts tell the kind alone, pictures the style alone
(`data/demo/shop.py`). So whoever reads one of them cannot know half of what decides, whoever fuses both can, and any of
them knows more than a list that is the same for everyone, of which the shop makes a poor one: popularity moves only the
choice between the two or so items of one look. Nothing of that depends on fine tuning, and on the CPU the figures are
the same in each run. Asserted is that the paired interval over users leaves zero out, and of popularity a multiple.

Not promised by the construction, and not asserted: where the variants with both modalities stand to each other, and
where any stands to item-kNN and SASRec, which learn the shop's rules without looking at an item.
"""

from typing import Any

import pytest

from benchmarks.accuracy.ablations import Study, run_study
from benchmarks.accuracy.preparation import prepare
from benchmarks.accuracy.variants import FULL, VARIANTS
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.runtime.progress import quiet_progress

EPOCHS = 2
QUANTIZER_EPOCHS = 60
THREADS = 1
STUDY = Study(
    "demo",
    systems=(*VARIANTS, "popularity"),
    overrides=(
        f"recommender.num_epochs={EPOCHS}",
        f"quantizer.num_epochs={QUANTIZER_EPOCHS}",
        # wide enough that the routes can agree: with ten beams a route the fused list loses most of its lead
        "decoding.beam_width=20",
        "runtime.device=cpu",
    ),
    threads=THREADS,
)
# How many times the NDCG@10 of popularity.
TIMES_POPULARITY = 5.0
TIMES_POPULARITY_WITHOUT_A_PART = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The study's own results document."""
    folder = tmp_path_factory.mktemp("demo-ordering")
    spec, config = load_dataset(STUDY.dataset), STUDY.config(FULL, STUDY.seeds[0])
    prepared = prepare(spec, config, data=folder / "data", work=folder / "work", progress=quiet_progress)
    return run_study(STUDY, prepared, work=folder / "work")


@pytest.fixture(scope="module")
def measured(document: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 of every system's test targets, seen items allowed."""
    return {
        label: measured["test"]["seen_allowed"]["ndcg_10"]["mean"] for label, measured in document["systems"].items()
    }


@pytest.mark.parametrize("other", ["text_only/text", "full/text", "full/image"])
def test_both_modalities_together_know_more_than_one(document: dict[str, Any], other: str) -> None:
    """The fused list is ahead of texts alone and of either route, by more than other users would have changed."""
    (found,) = (
        row
        for row in document["comparisons"]
        if (row["against"], row["setting"], row["metric"]) == (other, "seen_allowed", "ndcg_10")
    )
    assert found["system"] == "full/fused"
    assert found["low"] > 0, found


def test_the_whole_method_is_far_above_popularity(measured: dict[str, float]) -> None:
    """What comes next depends on what came last, which a list for everyone ignores."""
    assert measured["full/fused"] > TIMES_POPULARITY * measured["popularity"], measured


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_falls_to_popularity(measured: dict[str, float], variant: str) -> None:
    """Whatever part is left out, what is left still reads the history."""
    best = max(value for label, value in measured.items() if label.split("/")[0] == variant)
    assert best > TIMES_POPULARITY_WITHOUT_A_PART * measured["popularity"], measured
