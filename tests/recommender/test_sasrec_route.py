"""SASRec as a route: weighed on validation targets, gated off where it knows nothing, served with the bundle."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.config import SasrecConfig
from macrec_pipeline.errors import RequestError, StorageError
from macrec_pipeline.recommender import (
    FittedRecommender,
    FittedSasrec,
    RecommenderBundle,
    beam_agreement,
    fit_sasrec,
)
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, fusion_grid
from macrec_pipeline.recommender.retrieval.sasrec_route import rank_catalogue
from tests.recommender.cycle import NUM_ITEMS, cyclic_histories
from tests.recommender.fusing import (
    DECODING,
    ROUTES,
    TRUE_CODES,
    decoder_of,
    knowing_model,
    knowing_sasrec,
    scrambled,
    trained,
    validation_ndcg,
    write_bundle,
)

THREE = CalibratedFusion("product", {"text": 0.3, "image": 0.3, "collaborative": 0.4}, 0.25, 60)
SMALL_SASREC = SasrecConfig(d_model=16, max_length=20, max_epochs=1)


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    return knowing_model()


@pytest.fixture(scope="module")
def sasrec() -> FittedSasrec:
    return knowing_sasrec()


def ignorant_sasrec() -> FittedSasrec:
    """A SASRec that has learned nothing."""
    config = SasrecConfig(d_model=16, max_length=20, max_epochs=1, learning_rate=1e-12)
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=13)


@pytest.fixture
def three_routes(fitted: FittedRecommender, sasrec: FittedSasrec, tmp_path: Path) -> Path:
    return write_bundle(fitted, tmp_path / "made", fusion=THREE, config="calibrated", sasrec=sasrec)


def test_the_route_that_knows_gets_the_weight(fitted: FittedRecommender, sasrec: FittedSasrec) -> None:
    """SASRec beside two routes of noise, and noise beside two routes that know."""
    noise = {name: np.random.default_rng(1).permutation(value) for name, value in TRUE_CODES.items()}
    fusion = fit_fusion(fitted.model, cyclic_histories(), noise, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert fusion.weights["collaborative"] > 0.5
    assert fusion.validation_ndcg > 0.8
    alone = fit_fusion(fitted.model, cyclic_histories(), TRUE_CODES, config=DECODING)
    noisy = ignorant_sasrec().model
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
    other = fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=SMALL_SASREC, seed=6)
    stranger = write_bundle(fitted, tmp_path / "stranger", fusion=THREE, config="calibrated", sasrec=other)
    RecommenderBundle.load(stranger)
    shutil.copyfile(stranger / part.name, part)
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
    larger = fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS + 1, config=SMALL_SASREC, seed=5)
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
