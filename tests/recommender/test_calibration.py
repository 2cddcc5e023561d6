"""Calibrated fusion is fitted on validation targets, prefers the route that knows, and travels with the bundle."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.config import DecodingConfig, RecommenderConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle, fit_recommender
from macrec_pipeline.recommender.calibration import GRID, fit_fusion, save_fusion
from macrec_pipeline.recommender.decoding import Decoder
from macrec_pipeline.recommender.fusion import CalibratedFusion
from macrec_pipeline.recommender.objective import ItemCodes
from tests.recommender.cycle import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories

TRUE_CODES = {"text": codes(1), "image": codes(2)}
DECODING = DecodingConfig(beam_width=5, top_k=5, batch_size=16, fusion="calibrated")


def trained(**changes: object) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"dropout": 0.0} | changes)
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    return trained(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3)


def scrambled(route: str) -> dict[str, np.ndarray]:
    """The IDs that the model was trained on, but one route's belong to other items: what it recommends is noise."""
    return TRUE_CODES | {route: np.random.default_rng(0).permutation(TRUE_CODES[route])}


def decoder_of(fitted: FittedRecommender, ids: dict[str, np.ndarray], fusion: CalibratedFusion) -> Decoder:
    return Decoder(
        fitted.model, ItemCodes({name: torch.from_numpy(value) for name, value in ids.items()}), fusion=fusion
    )


def validation_ndcg(decoder: Decoder, histories: list[np.ndarray]) -> float:
    """NDCG@10 of the fused routes, by a plain loop over users and places."""
    ranked = decoder.rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=10, beam_width=5, batch_size=7
    )["fused"]
    gain = 0.0
    for found, history in zip(ranked, histories, strict=True):
        for place, item in enumerate(found.item_indices.tolist()):
            gain += (item == history[-2]) / np.log2(place + 2)
    return gain / len(histories)


@pytest.mark.parametrize("noise", ["image", "text"])
def test_a_route_of_noise_gets_the_smaller_weight(fitted: FittedRecommender, noise: str) -> None:
    """And no other weight or rule of the grid ranks the validation targets better, by a plain loop."""
    ids, histories = scrambled(noise), cyclic_histories()
    # as wide a beam as the list that is ranked
    fusion = fit_fusion(fitted.model, histories, ids, config=DECODING.model_copy(update={"top_k": 10}))
    assert fusion is not None
    assert fusion.num_users == len(histories)
    assert (fusion.text_weight > 0.5) == (noise == "image")
    figures = [validation_ndcg(decoder_of(fitted, ids, candidate), histories) for candidate in GRID]
    assert fusion.validation_ndcg == pytest.approx(max(figures))
    assert min(figures) < fusion.validation_ndcg - 0.3, "the weight matters"


def test_only_validation_targets_are_looked_at(fitted: FittedRecommender) -> None:
    """Other test targets change nothing, other validation targets do."""
    histories = cyclic_histories()

    def fit(position: int) -> CalibratedFusion | None:
        changed = [history.copy() for history in histories]
        for history in changed:
            history[position] = 0
        return fit_fusion(fitted.model, changed, scrambled("text"), config=DECODING)

    expected = fit_fusion(fitted.model, histories, scrambled("text"), config=DECODING)
    assert fit(-1) == expected
    assert fit(-2) != expected


def test_equal_figures_go_to_the_even_mixture(fitted: FittedRecommender) -> None:
    """Where no weight finds any target, nothing speaks against equal weights."""
    histories = cyclic_histories()
    decoder = decoder_of(fitted, TRUE_CODES, GRID[0])
    ranked = decoder.rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=NUM_ITEMS, beam_width=5, batch_size=99
    )["fused"]
    assert all(len(found.item_indices) == NUM_ITEMS for found in ranked)
    missed = [
        np.array([*history[:-2], found.item_indices[-1], 0]) for history, found in zip(histories, ranked, strict=True)
    ]
    narrow = DECODING.model_copy(update={"beam_width": 1, "top_k": 1})
    fusion = fit_fusion(fitted.model, missed, TRUE_CODES, config=narrow)
    assert fusion == CalibratedFusion("mixture", 0.5, 0.0, len(histories))


def test_a_model_of_one_route_has_nothing_to_fuse() -> None:
    """No rule is fitted for it."""
    alone = trained(tasks=("text_to_text",), num_epochs=1)
    assert fit_fusion(alone.model, cyclic_histories(), TRUE_CODES, config=DECODING) is None


def write_bundle(fitted: FittedRecommender, folder: Path, *, fusion: CalibratedFusion | None, config: str) -> Path:
    for name in ("weights", "bundle"):
        (folder / name).mkdir(parents=True)
    fitted.save(folder / "weights")
    if fusion is not None:
        save_fusion(fusion, folder / "weights")
    RecommenderBundle.write(
        folder / "bundle",
        recommender_folder=folder / "weights",
        item_ids=[str(index) for index in range(NUM_ITEMS)],
        popularity=np.ones(NUM_ITEMS, dtype=np.int64),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DECODING.model_dump() | {"fusion": config},
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    return folder / "bundle"


def test_a_bundle_fuses_by_the_rule_that_it_carries(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Calibrated settings use the fitted rule, published ones never do, whatever lies beside the weights."""
    fusion = CalibratedFusion("product", 0.3, 0.25, 60)
    inputs = [history[:-1] for history in cyclic_histories()]

    def scores(folder: Path) -> list[list[float]]:
        found = RecommenderBundle.load(folder).recommend(inputs, k=5)["fused"]
        return [ranked.scores.tolist() for ranked in found]

    calibrated = write_bundle(fitted, tmp_path / "calibrated", fusion=fusion, config="calibrated")
    assert RecommenderBundle.load(calibrated).description["fusion"] == asdict(fusion)
    own = decoder_of(fitted, TRUE_CODES, fusion).rank(inputs, routes=["fused"], top_k=5, beam_width=5, batch_size=16)
    assert scores(calibrated) == [ranked.scores.tolist() for ranked in own["fused"]]
    published = scores(write_bundle(fitted, tmp_path / "published", fusion=None, config="published"))
    assert scores(write_bundle(fitted, tmp_path / "unused", fusion=fusion, config="published")) == published
    assert published != scores(calibrated)


def test_a_bundle_without_the_rule_that_it_needs_refuses_to_load(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Never fitted, and damaged: the error names the file."""
    folder = write_bundle(fitted, tmp_path, fusion=None, config="calibrated")
    with pytest.raises(StorageError, match=r"bundle.json asks for calibrated fusion, but has no fitted weights"):
        RecommenderBundle.load(folder)
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"fusion": {"rule": "product"}}))
    with pytest.raises(StorageError, match=r"fusion in .*bundle.json is .*it needs rule"):
        RecommenderBundle.load(folder)
