"""Order of the systems on the demo shop, which follows from how the shop is constructed.

The shop's users follow a chain of kinds of items *and* keep to a style. Texts reveal only the kind, images only the
style (`data/demo/shop.py`). A model that reads one modality therefore misses half of what matters, and a model that
fuses both does not. Both are far better than recommending the same list to everyone: popularity only affects the choice
between the few items with the same look. This needs no tuning, and results on the CPU are the same in each run. The
tests assert that paired intervals over users exclude zero, and a multiple of popularity. They use a shop with half of
the demo's items, in which one epoch of small batches is enough to see the order.

The construction implies nothing about the order of the variants with both modalities, nor about item-kNN and SASRec,
which learn the shop's rules without reading items. The tests assert nothing about them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import trained
from benchmarks.accuracy.ablations import Study, run_study
from benchmarks.accuracy.preparation import prepare
from benchmarks.accuracy.variants import FULL, VARIANTS
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.runtime.progress import quiet_progress

EPOCHS, BATCH_SIZE = 1, 128
QUANTIZER_EPOCHS = 60
THREADS = 1
SHOP = """
name: demo
title: The demo shop with half of its items
preset: demo
k_core: 5
source: {reader: demo, folder: demo, num_items: 300, num_users: 900, seed: 7}
"""
STUDY = Study(
    "demo",
    systems=(*VARIANTS, "popularity"),
    overrides=(
        f"recommender.num_epochs={EPOCHS}",
        f"recommender.batch_size={BATCH_SIZE}",
        f"quantizer.num_epochs={QUANTIZER_EPOCHS}",
        # wide enough for the routes to agree; with ten beams per route, the fused list loses most of its lead
        "decoding.beam_width=20",
        "runtime.device=cpu",
    ),
    threads=THREADS,
)
# Required multiples of the NDCG@10 of popularity.
TIMES_POPULARITY = 5.0
TIMES_POPULARITY_WITHOUT_A_PART = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the shop, of which only test targets with seen items allowed are ranked: no test needs others."""
    folder = tmp_path_factory.mktemp("demo-ordering")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "demo.yaml").write_text(SHOP, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACREC_DATASETS", str(folder / "datasets"))
        patch.delitem(trained.HIDDEN, "validation")
        patch.delitem(trained.SETTINGS, "seen_excluded")
        yield folder


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    """Run the study, and return its results document."""
    spec, config = load_dataset(STUDY.dataset), STUDY.config(FULL, STUDY.seeds[0])
    prepared = prepare(spec, config, data=folder / "data", work=folder / "work", progress=quiet_progress)
    return run_study(STUDY, prepared, work=folder / "work")


@pytest.fixture(scope="module")
def ndcg(document: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 of every system on the test targets, with seen items allowed."""
    return {label: results["test"]["seen_allowed"]["ndcg_10"]["mean"] for label, results in document["systems"].items()}


@pytest.mark.parametrize("other", ["text_only/text", "full/text", "full/image"])
def test_both_modalities_are_better_than_one(document: dict[str, Any], other: str) -> None:
    """The fused list is better than texts alone and than either route, by more than the variation between users."""
    (comparison,) = (
        row
        for row in document["comparisons"]
        if (row["against"], row["setting"], row["metric"]) == (other, "seen_allowed", "ndcg_10")
    )
    assert comparison["system"] == "full/fused"
    assert comparison["low"] > 0, comparison


def test_the_full_method_is_far_better_than_popularity(ndcg: dict[str, float]) -> None:
    """The next item depends on the last one, which the same list for everyone ignores."""
    assert ndcg["full/fused"] > TIMES_POPULARITY * ndcg["popularity"], ndcg


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_better_than_popularity(ndcg: dict[str, float], variant: str) -> None:
    """Whichever part is left out, the model still reads the history."""
    best = max(value for label, value in ndcg.items() if label.split("/")[0] == variant)
    assert best > TIMES_POPULARITY_WITHOUT_A_PART * ndcg["popularity"], ndcg
