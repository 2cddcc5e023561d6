"""What the demo shop's construction promises, measured by the ablation command's own core.

People of the shop move by a chain of kinds *and* keep to a style. Texts tell the kind alone, pictures the style alone
(`data/demo_shop.py`). So whoever reads one of them cannot know half of what decides, whoever fuses both can, and any of
them knows more than a list that is the same for everyone, of which the shop makes a poor one: popularity moves only the
choice between the two or so items of one look. Nothing of that depends on fine tuning, and on the CPU the figures are
the same in each run, so margins are asserted and not only signs.

Not promised by the construction, and not asserted: where the variants with both modalities stand to each other, and
where any stands to item-kNN and SASRec, which learn the shop's rules without looking at an item.
"""

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
# NDCG@10 that the whole method is ahead at least.
AHEAD_OF_TEXT_ONLY = 0.05
AHEAD_OF_A_ROUTE = 0.05
# How many times the NDCG@10 of popularity.
TIMES_POPULARITY = 5.0
TIMES_POPULARITY_WITHOUT_A_PART = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """NDCG@10 of every system's test targets, seen items allowed."""
    folder = tmp_path_factory.mktemp("demo-ordering")
    spec, config = load_dataset(STUDY.dataset), STUDY.config(FULL, STUDY.seeds[0])
    prepared = prepare(spec, config, data=folder / "data", work=folder / "work", progress=quiet_progress)
    document = run_study(STUDY, prepared, work=folder / "work")
    return {
        label: measured["test"]["seen_allowed"]["ndcg_10"]["mean"] for label, measured in document["systems"].items()
    }


def test_two_modalities_know_more_than_one_text(measured: dict[str, float]) -> None:
    """A recommender of texts alone knows which kind comes next, and not in which style."""
    assert measured["full/fused"] > measured["text_only/text"] + AHEAD_OF_TEXT_ONLY, measured


@pytest.mark.parametrize("route", ["text", "image"])
def test_the_routes_together_know_more_than_each(measured: dict[str, float], route: str) -> None:
    """Each route reads one modality; the fused list has what both agree on first."""
    assert measured["full/fused"] > measured[f"full/{route}"] + AHEAD_OF_A_ROUTE, measured


def test_the_whole_method_is_far_above_popularity(measured: dict[str, float]) -> None:
    """What comes next depends on what came last, which a list for everyone ignores."""
    assert measured["full/fused"] > TIMES_POPULARITY * measured["popularity"], measured


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_falls_to_popularity(measured: dict[str, float], variant: str) -> None:
    """Whatever part is left out, what is left still reads the history."""
    best = max(value for label, value in measured.items() if label.split("/")[0] == variant)
    assert best > TIMES_POPULARITY_WITHOUT_A_PART * measured["popularity"], measured
