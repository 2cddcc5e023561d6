"""Calibrated fusion is fitted on validation targets, prefers the routes that know, and travels with the bundle."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.config import DecodingConfig, RecommenderConfig, SasrecConfig
from macrec_pipeline.errors import RequestError, StorageError
from macrec_pipeline.recommender import (
    FittedRecommender,
    FittedSasrec,
    RecommenderBundle,
    beam_agreement,
    fit_recommender,
    fit_sasrec,
)
from macrec_pipeline.recommender.calibration import fit_fusion, fusion_grid, save_fusion
from macrec_pipeline.recommender.collaborative import rank_catalogue
from macrec_pipeline.recommender.decoding import Decoder
from macrec_pipeline.recommender.fusion import CalibratedFusion
from macrec_pipeline.recommender.objective import ItemCodes
from tests.recommender.cycle import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories

GRID = fusion_grid(["text", "image"])
ROUTES = ["text", "image", "collaborative"]
TRUE_CODES = {"text": codes(1), "image": codes(2)}
DECODING = DecodingConfig(beam_width=5, top_k=5, batch_size=16, fusion="calibrated")


def trained(**changes: object) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"dropout": 0.0} | changes)
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    return trained(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3)


@pytest.fixture(scope="module")
def sasrec() -> FittedSasrec:
    """Knows the cycle."""
    config = SasrecConfig(
        d_model=16, max_length=20, batch_size=64, max_epochs=40, patience=40, dropout=0, learning_rate=1e-2
    )
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=5)


def noise_of(route: str) -> FittedSasrec:
    """A SASRec that has learned nothing."""
    config = SasrecConfig(d_model=16, max_length=20, max_epochs=1, learning_rate=1e-12)
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=len(route))


def scrambled(route: str) -> dict[str, np.ndarray]:
    """The IDs that the model was trained on, but one route's belong to other items: what it recommends is noise."""
    return TRUE_CODES | {route: np.random.default_rng(0).permutation(TRUE_CODES[route])}


def decoder_of(
    fitted: FittedRecommender,
    ids: dict[str, np.ndarray],
    fusion: CalibratedFusion | None,
    sasrec: FittedSasrec | None = None,
) -> Decoder:
    items = ItemCodes({name: torch.from_numpy(value) for name, value in ids.items()})
    return Decoder(fitted.model, items, fusion=fusion, collaborative=sasrec.model if sasrec else None)


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
    assert (fusion.weights["text"] > 0.5) == (noise == "image")
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
    assert fusion == CalibratedFusion("mixture", {"text": 0.5, "image": 0.5}, 0.0, len(histories))


def test_a_model_of_one_route_has_nothing_to_fuse() -> None:
    """No rule is fitted for it."""
    alone = trained(tasks=("text_to_text",), num_epochs=1)
    assert fit_fusion(alone.model, cyclic_histories(), TRUE_CODES, config=DECODING) is None


def test_the_grid_is_the_whole_simplex_and_has_its_corners() -> None:
    """Both rules; 11 weights of two routes and 66 of three, each once, together one; every route can be gated off."""
    for routes, count in ((ROUTES[:2], 11), (ROUTES, 66)):
        grid = fusion_grid(routes)
        for rule in ("mixture", "product"):
            weights = [tuple(one.weights[route] for route in routes) for one in grid if one.rule == rule]
            assert len(weights) == len(set(weights)) == count
            assert all(sum(shares) == pytest.approx(1) for shares in weights)
            for corner in np.eye(len(routes)):
                assert tuple(corner) in weights
    without = [one for one in fusion_grid(ROUTES) if one.weights["collaborative"] == 0]
    assert [(one.rule, one.weights["text"]) for one in without] == [(one.rule, one.weights["text"]) for one in GRID]


def test_the_route_that_knows_gets_the_weight(fitted: FittedRecommender, sasrec: FittedSasrec) -> None:
    """SASRec beside two routes of noise, and noise beside two routes that know."""
    noise = {name: np.random.default_rng(1).permutation(value) for name, value in TRUE_CODES.items()}
    fusion = fit_fusion(fitted.model, cyclic_histories(), noise, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert fusion.weights["collaborative"] > 0.5
    assert fusion.validation_ndcg > 0.8
    alone = fit_fusion(fitted.model, cyclic_histories(), TRUE_CODES, config=DECODING)
    noisy = noise_of("collaborative").model
    gated = fit_fusion(fitted.model, cyclic_histories(), TRUE_CODES, config=DECODING, sasrec=noisy)
    assert alone is not None
    assert gated is not None
    assert gated.validation_ndcg >= alone.validation_ndcg
    assert gated.weights["collaborative"] < 0.5


def test_three_weights_rank_as_a_plain_loop_over_users_says(fitted: FittedRecommender, sasrec: FittedSasrec) -> None:
    """The figure of the chosen rule is that of the decoder that uses it, and no other of the grid has a higher one."""
    ids, histories = scrambled("text"), cyclic_histories(20)
    config = DECODING.model_copy(update={"top_k": 10})
    fusion = fit_fusion(fitted.model, histories, ids, config=config, sasrec=sasrec.model)
    assert fusion is not None
    figures = [validation_ndcg(decoder_of(fitted, ids, one, sasrec), histories) for one in fusion_grid(ROUTES)[::7]]
    assert fusion.validation_ndcg >= max(figures) - 1e-9
    assert validation_ndcg(decoder_of(fitted, ids, fusion, sasrec), histories) == pytest.approx(fusion.validation_ndcg)


def test_three_weights_never_look_at_the_test_target(fitted: FittedRecommender, sasrec: FittedSasrec) -> None:
    """Other last items give the same weights and figure; other validation targets do not."""

    def fit(position: int | None) -> CalibratedFusion | None:
        changed = [history.copy() for history in cyclic_histories()]
        for history in changed if position is not None else ():
            history[position] = (history[position] + 11) % NUM_ITEMS
        return fit_fusion(fitted.model, changed, scrambled("text"), config=DECODING, sasrec=sasrec.model)

    assert fit(-1) == fit(None)
    assert fit(-2) != fit(None)


def test_one_generative_route_is_fused_with_the_collaborative_one(sasrec: FittedSasrec) -> None:
    """Two routes, eleven weights."""
    alone = trained(tasks=("text_to_text",), num_epochs=1)
    fusion = fit_fusion(alone.model, cyclic_histories(), TRUE_CODES, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert list(fusion.weights) == ["text", "collaborative"]


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("rule", ["mixture", "product"])
def test_k_items_come_back_from_every_route(
    fitted: FittedRecommender, sasrec: FittedSasrec, rule: str, exclude_seen: bool
) -> None:
    """k distinct items, none of the history where seen ones are excluded; the collaborative list is SASRec's own."""
    weights = {"text": 0.3, "image": 0.3, "collaborative": 0.4}
    fusion = CalibratedFusion.from_description(
        {"rule": rule, "weights": weights, "validation_ndcg": 0.0, "num_users": 1}, where="a test"
    )
    inputs = [history[:-1] for history in cyclic_histories()]
    ranked = decoder_of(fitted, TRUE_CODES, fusion, sasrec).rank(
        inputs, routes=["fused", *ROUTES], top_k=17, beam_width=3, batch_size=7, exclude_seen=exclude_seen
    )
    for found in ranked.values():
        for history, one in zip(inputs, found, strict=True):
            assert len(set(one.item_indices.tolist())) == 17
            assert not (exclude_seen and set(one.item_indices.tolist()) & set(history.tolist()))
    own = rank_catalogue(sasrec.model, inputs, top_k=17, exclude_seen=exclude_seen)
    for one, other in zip(ranked["collaborative"], own, strict=True):
        assert one.item_indices.tolist() == other.item_indices.tolist()
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


def test_no_weight_serves_what_the_other_routes_alone_serve(fitted: FittedRecommender, sasrec: FittedSasrec) -> None:
    """A gated route leaves the fused list, items and scores, as it is without SASRec."""
    gated = CalibratedFusion("mixture", {"text": 0.4, "image": 0.6, "collaborative": 0.0}, 0.0, 1)
    plain = CalibratedFusion("mixture", {"text": 0.4, "image": 0.6}, 0.0, 1)
    inputs = [history[:-1] for history in cyclic_histories()]
    settings = {"routes": ["fused"], "top_k": 8, "beam_width": 5, "batch_size": 16, "exclude_seen": True}
    one = decoder_of(fitted, TRUE_CODES, gated, sasrec).rank(inputs, **settings)["fused"]
    other = decoder_of(fitted, TRUE_CODES, plain).rank(inputs, **settings)["fused"]
    assert [found.item_indices.tolist() for found in one] == [found.item_indices.tolist() for found in other]
    assert [found.scores.tolist() for found in one] == [found.scores.tolist() for found in other]


def write_bundle(
    fitted: FittedRecommender,
    folder: Path,
    *,
    fusion: CalibratedFusion | None,
    config: str,
    sasrec: FittedSasrec | None = None,
) -> Path:
    for name in ("weights", "bundle", "sasrec"):
        (folder / name).mkdir(parents=True)
    fitted.save(folder / "weights")
    if sasrec is not None:
        sasrec.save(folder / "sasrec")
    if fusion is not None:
        save_fusion(fusion, folder / "weights")
    RecommenderBundle.write(
        folder / "bundle",
        recommender_folder=folder / "weights",
        sasrec_folder=folder / "sasrec" if sasrec is not None else None,
        item_ids=[str(index) for index in range(NUM_ITEMS)],
        popularity=np.ones(NUM_ITEMS, dtype=np.int64),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DECODING.model_dump() | {"fusion": config, "collaborative_route": sasrec is not None},
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    return folder / "bundle"


def test_a_bundle_fuses_by_the_rule_that_it_carries(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Calibrated settings use the fitted rule, published ones never do, whatever lies beside the weights."""
    fusion = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
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


THREE = CalibratedFusion("product", {"text": 0.3, "image": 0.3, "collaborative": 0.4}, 0.25, 60)


@pytest.fixture
def three_routes(fitted: FittedRecommender, sasrec: FittedSasrec, tmp_path: Path) -> Path:
    return write_bundle(fitted, tmp_path / "made", fusion=THREE, config="calibrated", sasrec=sasrec)


def test_a_bundle_carries_the_collaborative_route(
    fitted: FittedRecommender, sasrec: FittedSasrec, three_routes: Path
) -> None:
    """The loaded bundle has the route and ranks, fused and by it alone, as the parts that it was made from do."""
    bundle = RecommenderBundle.load(three_routes)
    assert bundle.routes == ROUTES
    assert set(bundle.description["parts"]) == {
        "model.safetensors",
        "semantic_ids.safetensors",
        "catalogue.json",
        "sasrec.safetensors",
    }
    inputs = [history[:-1] for history in cyclic_histories()]
    own = decoder_of(fitted, TRUE_CODES, THREE, sasrec).rank(
        inputs, routes=["fused", "collaborative"], top_k=5, beam_width=5, batch_size=16
    )
    served = bundle.recommend(inputs, routes=("fused", "collaborative"), k=5)
    for route, expected in own.items():
        assert [one.scores.tolist() for one in served[route]] == [one.scores.tolist() for one in expected]
    (answer,) = bundle.recommend_ids([["3", "4", "nobody", "5"]], k=3, route="collaborative", exclude_seen=True)
    assert answer.item_ids[0] == "6"
    assert list(beam_agreement(bundle, cyclic_histories())) == ["text", "image"]


def test_a_bundle_without_the_route_refuses_to_be_asked_by_it(fitted: FittedRecommender, tmp_path: Path) -> None:
    """It has no such part, and says which routes there are."""
    fusion = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
    folder = write_bundle(fitted, tmp_path, fusion=fusion, config="calibrated")
    assert not (folder / "sasrec.safetensors").exists()
    with pytest.raises(RequestError, match="route is 'collaborative'; this model has fused, text, image"):
        RecommenderBundle.load(folder).recommend_ids([["1"]], route="collaborative")


def test_the_collaborative_part_must_belong_to_the_bundle(
    fitted: FittedRecommender, sasrec: FittedSasrec, three_routes: Path, tmp_path: Path
) -> None:
    """Changed, missing, or of weights that were never fitted for it: each refuses to load and names the file."""
    part = three_routes / "sasrec.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"sasrec\.safetensors does not belong to this bundle"):
        RecommenderBundle.load(three_routes)
    part.unlink()
    with pytest.raises(StorageError, match=r"sasrec\.safetensors is missing"):
        RecommenderBundle.load(three_routes)
    two = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
    mixed = write_bundle(fitted, tmp_path / "mixed", fusion=two, config="calibrated", sasrec=sasrec)
    with pytest.raises(StorageError, match="weighs image, text, but the routes are collaborative, image, text"):
        RecommenderBundle.load(mixed)


def test_a_bundle_of_another_catalogue_is_refused(fitted: FittedRecommender, tmp_path: Path) -> None:
    """A SASRec that was trained when there were more items."""
    config = SasrecConfig(d_model=16, max_length=20, max_epochs=1)
    larger = fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS + 1, config=config, seed=5)
    folder = write_bundle(fitted, tmp_path, fusion=THREE, config="calibrated", sasrec=larger)
    with pytest.raises(StorageError, match=r"knows 31 items, but bundle.json says 30"):
        RecommenderBundle.load(folder)


def test_the_same_parts_give_the_same_bytes(fitted: FittedRecommender, sasrec: FittedSasrec, tmp_path: Path) -> None:
    """Also with the collaborative part."""
    first, second = (
        write_bundle(fitted, tmp_path / name, fusion=THREE, config="calibrated", sasrec=sasrec) for name in ("a", "b")
    )
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
