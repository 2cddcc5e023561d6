"""SASRec as a retrieval route: fitted on validation targets, without weight if it is noise, served with the bundle."""

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
from macrec_pipeline.recommender.retrieval.retriever import rank_catalogue
from tests.recommender.cyclic_catalogue import NUM_ITEMS, cyclic_histories
from tests.recommender.cyclic_models import (
    DECODING,
    ROUTES,
    TRUE_CODES,
    fit,
    fit_trained_sasrec,
    retriever_of,
    validation_ndcg,
    with_shuffled_route,
    write_fused_bundle,
)

OF_THREE_ROUTES = CalibratedFusion("product", {"text": 0.3, "image": 0.3, "collaborative": 0.4}, 0.25, 60)
OF_TWO_ROUTES = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
SMALL_SASREC = SasrecConfig(d_model=16, max_length=20, max_epochs=1)


@pytest.fixture(scope="module")
def sasrec() -> FittedSasrec:
    return fit_trained_sasrec()


def untrained_sasrec() -> FittedSasrec:
    """Fit with a learning rate that is too small to learn anything."""
    config = SasrecConfig(d_model=16, max_length=20, max_epochs=1, learning_rate=1e-12)
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=13)


@pytest.fixture
def bundle_of_three_routes(trained_model: FittedRecommender, sasrec: FittedSasrec, tmp_path: Path) -> Path:
    return write_fused_bundle(
        trained_model, tmp_path / "three", fusion=OF_THREE_ROUTES, fusion_setting="calibrated", sasrec=sasrec
    )


def test_the_route_that_predicts_gets_the_weight(trained_model: FittedRecommender, sasrec: FittedSasrec) -> None:
    """A trained SASRec outweighs two routes of noise, and an untrained one does not outweigh two trained routes."""
    noise = {modality: np.random.default_rng(1).permutation(values) for modality, values in TRUE_CODES.items()}
    fusion = fit_fusion(trained_model.model, cyclic_histories(), noise, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert fusion.weights["collaborative"] > 0.5
    assert fusion.validation_ndcg > 0.8
    without = fit_fusion(trained_model.model, cyclic_histories(), TRUE_CODES, config=DECODING)
    with_noise = fit_fusion(
        trained_model.model, cyclic_histories(), TRUE_CODES, config=DECODING, sasrec=untrained_sasrec().model
    )
    assert without is not None
    assert with_noise is not None
    assert with_noise.validation_ndcg >= without.validation_ndcg
    assert with_noise.weights["collaborative"] < 0.5


def test_the_fitted_ndcg_equals_that_of_a_plain_loop(trained_model: FittedRecommender, sasrec: FittedSasrec) -> None:
    """The fitted NDCG is that of a retriever that uses the rule, and no other rule of the grid has a higher one."""
    codes_of, histories = with_shuffled_route("text"), cyclic_histories(20)
    config = DECODING.model_copy(update={"top_k": 10})
    fusion = fit_fusion(trained_model.model, histories, codes_of, config=config, sasrec=sasrec.model)
    assert fusion is not None

    def ndcg_of(rule: CalibratedFusion) -> float:
        return validation_ndcg(retriever_of(trained_model, codes_of, rule, sasrec), histories)

    assert fusion.validation_ndcg >= max(map(ndcg_of, fusion_grid(ROUTES)[::7])) - 1e-9
    assert ndcg_of(fusion) == pytest.approx(fusion.validation_ndcg)


def test_fitting_three_weights_never_reads_the_test_target(
    trained_model: FittedRecommender, sasrec: FittedSasrec
) -> None:
    """Other last items give the same weights and the same NDCG; other validation targets do not."""

    def fit_with_changed(position: int | None) -> CalibratedFusion | None:
        changed = [history.copy() for history in cyclic_histories()]
        for history in changed if position is not None else ():
            history[position] = (history[position] + 11) % NUM_ITEMS
        codes_of = with_shuffled_route("text")
        return fit_fusion(trained_model.model, changed, codes_of, config=DECODING, sasrec=sasrec.model)

    assert fit_with_changed(-1) == fit_with_changed(None)
    assert fit_with_changed(-2) != fit_with_changed(None)


def test_one_generative_route_is_fused_with_the_collaborative_one(sasrec: FittedSasrec) -> None:
    """A model with a single generative route gets a weight for each of the two routes."""
    text_only = fit(tasks=("text_to_text",), num_epochs=1)
    fusion = fit_fusion(text_only.model, cyclic_histories(), TRUE_CODES, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert list(fusion.weights) == ["text", "collaborative"]


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("rule", ["mixture", "product"])
def test_every_route_returns_k_items(
    trained_model: FittedRecommender, sasrec: FittedSasrec, rule: str, exclude_seen: bool
) -> None:
    """Each route returns k distinct items without excluded ones, and the collaborative route those of SASRec itself."""
    weights = {"text": 0.3, "image": 0.3, "collaborative": 0.4}
    fusion = CalibratedFusion.from_description(
        {"rule": rule, "weights": weights, "validation_ndcg": 0.0, "num_users": 1}, where="a test"
    )
    inputs = [history[:-1] for history in cyclic_histories()]
    ranked = retriever_of(trained_model, TRUE_CODES, fusion, sasrec).rank(
        inputs, routes=["fused", *ROUTES], top_k=17, beam_width=3, batch_size=7, exclude_seen=exclude_seen
    )
    for of_route in ranked.values():
        for history, of_user in zip(inputs, of_route, strict=True):
            assert len(set(of_user.item_indices.tolist())) == 17
            assert not (exclude_seen and set(of_user.item_indices.tolist()) & set(history.tolist()))
    by_sasrec = rank_catalogue(sasrec.model, inputs, top_k=17, exclude_seen=exclude_seen)
    for of_user, expected in zip(ranked["collaborative"], by_sasrec, strict=True):
        assert of_user.item_indices.tolist() == expected.item_indices.tolist()
        np.testing.assert_allclose(of_user.scores, expected.scores, rtol=1e-4)


def test_a_weight_of_zero_equals_having_no_sasrec(trained_model: FittedRecommender, sasrec: FittedSasrec) -> None:
    """The fused list has the same items and scores."""
    with_zero = CalibratedFusion("mixture", {"text": 0.4, "image": 0.6, "collaborative": 0.0}, 0.0, 1)
    without = CalibratedFusion("mixture", {"text": 0.4, "image": 0.6}, 0.0, 1)
    inputs = [history[:-1] for history in cyclic_histories()]
    options = {"routes": ["fused"], "top_k": 8, "beam_width": 5, "batch_size": 16, "exclude_seen": True}
    found = retriever_of(trained_model, TRUE_CODES, with_zero, sasrec).rank(inputs, **options)["fused"]
    expected = retriever_of(trained_model, TRUE_CODES, without).rank(inputs, **options)["fused"]
    assert [one.item_indices.tolist() for one in found] == [one.item_indices.tolist() for one in expected]
    assert [one.scores.tolist() for one in found] == [one.scores.tolist() for one in expected]


def test_a_bundle_contains_the_collaborative_route(
    trained_model: FittedRecommender, sasrec: FittedSasrec, bundle_of_three_routes: Path
) -> None:
    """The loaded bundle has the route, and ranks, fused and by this route alone, as the parts it was written from."""
    bundle = RecommenderBundle.load(bundle_of_three_routes)
    assert bundle.routes == ROUTES
    assert set(bundle.description["parts"]) == {
        "model.safetensors",
        "semantic_ids.safetensors",
        "catalogue.json",
        "sasrec.safetensors",
    }
    inputs = [history[:-1] for history in cyclic_histories()]
    expected_of_route = retriever_of(trained_model, TRUE_CODES, OF_THREE_ROUTES, sasrec).rank(
        inputs, routes=["fused", "collaborative"], top_k=5, beam_width=5, batch_size=16
    )
    ranked = bundle.recommend(inputs, routes=("fused", "collaborative"), k=5)
    for route, expected in expected_of_route.items():
        assert [one.scores.tolist() for one in ranked[route]] == [one.scores.tolist() for one in expected]
    (recommendation,) = bundle.recommend_ids(
        [["3", "4", "unknown", "5"]], k=3, route="collaborative", exclude_seen=True
    )
    assert recommendation.item_ids[0] == "6"
    assert list(beam_agreement(bundle, cyclic_histories())) == ["text", "image"]


def test_a_bundle_without_the_route_rejects_it(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """A bundle without the collaborative part rejects the route, and the error lists the routes that exist."""
    folder = write_fused_bundle(trained_model, tmp_path, fusion=OF_TWO_ROUTES, fusion_setting="calibrated")
    assert not (folder / "sasrec.safetensors").exists()
    with pytest.raises(
        RequestError, match=r"Unknown route 'collaborative'. This model has the routes fused, text, image\."
    ):
        RecommenderBundle.load(folder).recommend_ids([["1"]], route="collaborative")


def test_a_collaborative_part_of_another_bundle_is_rejected(
    trained_model: FittedRecommender, sasrec: FittedSasrec, bundle_of_three_routes: Path, tmp_path: Path
) -> None:
    """A changed or missing part, and weights fitted for other routes, raise an error that names the file."""
    part = bundle_of_three_routes / "sasrec.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"sasrec\.safetensors does not belong to this bundle"):
        RecommenderBundle.load(bundle_of_three_routes)
    other_sasrec = fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=SMALL_SASREC, seed=6)
    other = write_fused_bundle(
        trained_model, tmp_path / "other", fusion=OF_THREE_ROUTES, fusion_setting="calibrated", sasrec=other_sasrec
    )
    RecommenderBundle.load(other)
    shutil.copyfile(other / part.name, part)
    with pytest.raises(StorageError, match=r"sasrec\.safetensors does not belong to this bundle"):
        RecommenderBundle.load(bundle_of_three_routes)
    part.unlink()
    with pytest.raises(StorageError, match=r"sasrec\.safetensors is missing"):
        RecommenderBundle.load(bundle_of_three_routes)
    mixed = write_fused_bundle(
        trained_model, tmp_path / "mixed", fusion=OF_TWO_ROUTES, fusion_setting="calibrated", sasrec=sasrec
    )
    with pytest.raises(
        StorageError, match="has weights for image, text, but the routes are collaborative, image, text"
    ):
        RecommenderBundle.load(mixed)


def test_a_sasrec_of_another_catalogue_is_rejected(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """A SASRec that was trained on a catalogue with one more item is rejected."""
    larger = fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS + 1, config=SMALL_SASREC, seed=5)
    folder = write_fused_bundle(
        trained_model, tmp_path, fusion=OF_THREE_ROUTES, fusion_setting="calibrated", sasrec=larger
    )
    with pytest.raises(StorageError, match=r"was trained on 31 items, but the catalogue in bundle.json has 30"):
        RecommenderBundle.load(folder)


def test_equal_parts_give_equal_bytes(trained_model: FittedRecommender, sasrec: FittedSasrec, tmp_path: Path) -> None:
    """Two bundles of equal parts, the collaborative one included, have equal bytes."""
    first, second = (
        write_fused_bundle(
            trained_model, tmp_path / name, fusion=OF_THREE_ROUTES, fusion_setting="calibrated", sasrec=sasrec
        )
        for name in ("a", "b")
    )
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
