"""Training is repeatable, and a bundle serves what it was made from and refuses what does not belong to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from macrec_pipeline.config import DecodingConfig, RecommenderConfig
from macrec_pipeline.errors import RequestError, StorageError
from macrec_pipeline.recommender import (
    FittedRecommender,
    RecommenderBundle,
    beam_agreement,
    fit_recommender,
    predict_test_users,
)
from macrec_pipeline.recommender.bundle.bundle import predictions
from macrec_pipeline.recommender.bundle.parts import digest_of, sealed
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from tests.recommender.cycle import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories


def fit(**changes: object) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | changes)
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    return fit(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3, dropout=0.0)


@pytest.fixture(scope="module")
def bundle_folder(fitted: FittedRecommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = tmp_path_factory.mktemp("weights")
    fitted.save(weights)
    folder = tmp_path_factory.mktemp("bundle")
    write(folder, weights)
    return folder


def write(folder: Path, weights: Path, quantizer: bytes | None = b"{}") -> None:
    files = [] if quantizer is None else [weights / "quantizer.json", weights / "text.safetensors"]
    for file in files:
        file.write_bytes(quantizer or b"")
    RecommenderBundle.write(
        folder,
        recommender_folder=weights,
        quantizer_files=files,
        item_ids=[f"item/{index} ü" for index in range(NUM_ITEMS)],
        popularity=np.arange(NUM_ITEMS)[::-1].copy(),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DecodingConfig(beam_width=5).model_dump(),
        catalogue=[
            {"title": f"Item {index}", "image_path": None, "categories": None if index % 3 else ["Third", "All thirds"]}
            for index in range(NUM_ITEMS)
        ],
        provenance={"dataset": "cycle"},
    )


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_the_same_seed_gives_the_same_weights(encoding: str, tmp_path: Path) -> None:
    """Two trainings write identical bytes, whatever the global generator did in between."""
    for name in ("a", "b"):
        torch.rand(7)
        (tmp_path / name).mkdir()
        fit(encoding=encoding).save(tmp_path / name)
    for file in ("model.safetensors", "recommender.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_training_learns_a_certain_sequence(fitted: FittedRecommender) -> None:
    """On histories whose next item is certain, the kept epoch predicts validation items nearly surely."""
    assert min(row["validation_loss"] for row in fitted.log) < 0.3 * np.log(4)
    best = fitted.log[fitted.best_epoch - 1]["validation_loss"]
    assert best == min(row["validation_loss"] for row in fitted.log)


def test_validation_and_test_targets_are_never_trained_on() -> None:
    """Other last two items change nothing in the training loss of the first epoch."""
    histories = cyclic_histories()
    changed = [np.concatenate([history[:-2], [0, 0]]) for history in histories]
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 1})
    first, second = (
        fit_recommender(data, codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU).log[0]
        for data in (histories, changed)
    )
    assert first["train_loss"] == second["train_loss"]
    assert first["validation_loss"] != second["validation_loss"]


def test_a_bundle_predicts_the_next_item_by_id(bundle_folder: Path) -> None:
    """Ids in, ids out; unknown ones are skipped, and a history of none falls back to popularity and says so."""
    bundle = RecommenderBundle.load(bundle_folder)
    known, skipping, empty, unknown = bundle.recommend_ids(
        [
            ["item/3 ü", "item/4 ü", "item/5 ü"],
            ["nobody", "item/3 ü", "item/4 ü", "??", "item/5 ü"],
            [],
            ["nobody"],
        ],
        k=3,
    )
    assert known.item_ids[0] == "item/6 ü"
    assert known.fallback == "none"
    assert skipping.item_ids == known.item_ids
    assert skipping.scores == pytest.approx(known.scores, rel=1e-4)
    assert empty == unknown
    assert empty.item_ids == ["item/0 ü", "item/1 ü", "item/2 ü"]
    assert empty.fallback == "popularity"
    assert bundle.recommend_ids([["nobody"]], k=3) == [empty], "without anyone known beside it"
    assert bundle.recommend_ids([]) == []


def test_rules_are_the_shops_ids(bundle_folder: Path) -> None:
    """Of all histories and of each, known and unknown ones alike; ids that the catalogue lacks name nothing."""
    bundle = RecommenderBundle.load(bundle_folder)
    known = ["item/3 ü", "item/4 ü", "item/5 ü"]
    (free,) = bundle.recommend_ids([known], k=NUM_ITEMS, beam_width=NUM_ITEMS)
    out_of_stock, stock = free.item_ids[0], [*free.item_ids[1:6], "gone"]
    known_one, unknown, nothing, own = bundle.recommend_ids(
        [known, ["nobody"], known, known],
        k=4,
        beam_width=NUM_ITEMS,
        rules=Rules(excluded=[out_of_stock, "gone"]),
        rules_of_rows=[None, Rules(allowed=stock), Rules(allowed=["gone"]), Rules(excluded=free.item_ids[1:-2])],
    )
    assert known_one.item_ids == free.item_ids[1:5]
    assert known_one.scores == pytest.approx(free.scores[1:5], rel=1e-4)
    popularity = sorted(stock[:5], key=lambda item: int(item.split("/")[1].split()[0]))
    assert (unknown.item_ids, unknown.fallback) == (popularity[:4], "popularity")
    assert (nothing.item_ids, nothing.scores, nothing.fallback) == ([], [], "none")
    assert own.item_ids == free.item_ids[-2:], "fewer than k are legal"
    (strange,) = bundle.recommend_ids([["nobody"]], k=4, rules=Rules(allowed=[]))
    assert (strange.item_ids, strange.fallback) == ([], "popularity")
    with pytest.raises(RequestError, match="rules of 1 rows, but 2 histories"):
        bundle.recommend_ids([known, known], rules_of_rows=[None])


def test_categories_are_those_of_the_catalogue(bundle_folder: Path) -> None:
    """Every third item is in two categories, the others in none; a bundle of an older version knows none at all."""
    bundle = RecommenderBundle.load(bundle_folder)
    assert all(("categories" in item) == (index % 3 == 0) for index, item in enumerate(bundle.catalogue))
    for rules in (Rules(allowed_categories=["Third"]), Rules(allowed_categories=["All thirds", "Third"])):
        for history in (["item/3 ü"], ["nobody"]):
            (answer,) = bundle.recommend_ids([history], k=NUM_ITEMS, rules=rules)
            assert {int(item.split("/")[1].split()[0]) for item in answer.item_ids} == set(range(0, NUM_ITEMS, 3))
    (answer,) = bundle.recommend_ids([["item/3 ü"]], k=NUM_ITEMS, rules=Rules(excluded_categories=["Third"]))
    assert len(answer.item_ids) == NUM_ITEMS - NUM_ITEMS // 3
    for item in bundle.catalogue:
        item.pop("categories", None)
    bundle = RecommenderBundle(bundle._decoder, bundle.catalogue, np.ones(NUM_ITEMS), bundle.description)
    assert bundle.items_of == {}
    with pytest.raises(RequestError, match=r"no category 'Third'.*Its items have none"):
        bundle.recommend_ids([["nobody"]], rules=Rules(allowed_categories=["Third"]))


def test_each_history_may_say_whether_seen_items_come_back(bundle_folder: Path) -> None:
    """Every answer is the one that the history would get in a call of its own kind."""
    bundle = RecommenderBundle.load(bundle_folder)
    histories = [["item/3 ü"], ["nobody"], ["item/7 ü", "item/8 ü"], ["item/3 ü"], []]
    unseen = [True, True, False, False, True]
    mixed = bundle.recommend_ids(histories, k=NUM_ITEMS, exclude_seen=unseen)
    for history, of_row, answer in zip(histories, unseen, mixed, strict=True):
        (alone,) = bundle.recommend_ids([history], k=NUM_ITEMS, exclude_seen=of_row)
        assert (answer.item_ids, answer.fallback) == (alone.item_ids, alone.fallback)
        assert answer.scores == pytest.approx(alone.scores, rel=1e-4)
    assert "item/3 ü" not in mixed[0].item_ids
    assert "item/3 ü" in mixed[3].item_ids
    with pytest.raises(RequestError, match="exclude_seen of 1 rows, but 2 histories"):
        bundle.recommend_ids([[], []], exclude_seen=[True])


def test_the_beams_agreement_with_exact_scores_is_measured(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam as wide as the catalogue agrees for everyone; one as narrow as the list misses something now and then."""
    bundle = RecommenderBundle.load(bundle_folder)
    everyone = {"same_top_10": 1.0, "overlap_10": 1.0, "users": 60.0}
    bundle.description["decoding"]["beam_width"] = NUM_ITEMS
    assert beam_agreement(bundle, cyclic_histories()) == {"text": everyone, "image": everyone}
    monkeypatch.setattr(predictions, "EXACT_CUTOFF", 5)
    bundle.description["decoding"] |= {"beam_width": 5, "top_k": 5}
    narrow = beam_agreement(bundle, cyclic_histories())["image"]
    assert 0 < narrow["same_top_10"] < narrow["overlap_10"] < 1


def test_the_agreement_is_measured_on_few_users_of_a_small_catalogue(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users are evenly spaced, first and last among them, fewer for more items; beyond a bound nothing is measured."""
    bundle = RecommenderBundle.load(bundle_folder)
    histories, asked = cyclic_histories(), []
    monkeypatch.setattr(predictions, "EXACT_PAIRS", 3 * NUM_ITEMS + 1)
    monkeypatch.setattr(bundle, "exact_scores", lambda inputs, route: asked.extend(inputs) or torch.rand(3, NUM_ITEMS))
    beam_agreement(bundle, histories)
    wanted = sorted((histories[user][:-1].tolist() for user in (0, 30, 59)), key=len)
    assert [history.tolist() for history in asked] == wanted * 2
    monkeypatch.setattr(predictions, "EXACT_ITEMS", NUM_ITEMS - 1)
    assert beam_agreement(bundle, histories) == {}


def test_test_users_are_predicted_from_all_items_but_the_last(bundle_folder: Path) -> None:
    """Every system ranks for every user, and the cycle's next item comes first nearly always."""
    bundle = RecommenderBundle.load(bundle_folder)
    histories = cyclic_histories()
    results = predict_test_users(bundle, histories, top_k=5)
    assert set(results) == {(s, e) for s in ("macrec", "macrec_text", "macrec_image") for e in (False, True)}
    for (_, exclude_seen), ranked in results.items():
        assert len(ranked) == len(histories)
        for history, found in zip(histories, ranked, strict=True):
            assert not (exclude_seen and set(history[:-1].tolist()) & set(found.item_indices.tolist()))
    hits = [
        found.item_indices[0] == history[-1] for history, found in zip(histories, results["macrec", False], strict=True)
    ]
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0; it must be from 1 to the catalogue's 30 items"),
        ({"k": 31}, "k is 31"),
        ({"route": "sound"}, "route is 'sound'; this model has fused, text, image"),
        ({"beam_width": -1}, "beam_width is -1"),
    ],
)
def test_impossible_requests_say_what_was_expected(bundle_folder: Path, arguments: dict, message: str) -> None:
    """Each is a RequestError with the value and the range."""
    with pytest.raises(RequestError, match=message):
        RecommenderBundle.load(bundle_folder).recommend_ids([["item/1 ü"]], **arguments)


def test_mixed_or_tampered_parts_refuse_to_load(bundle_folder: Path, tmp_path: Path) -> None:
    """A changed catalogue, a missing part and another format each end in an error that names the file."""
    for name, damage, message in (
        ("changed", lambda f: (f / "catalogue.json").write_text("[]"), "catalogue.json does not belong to this bundle"),
        ("missing", lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        ("empty", lambda f: (f / "bundle.json").write_text(""), "bundle.json is missing or not"),
        ("unquantized", lambda f: shutil.rmtree(f / "quantizer"), "quantizer/quantizer.json is missing"),
    ):
        folder = tmp_path / name
        shutil.copytree(bundle_folder, folder)
        damage(folder)
        with pytest.raises(StorageError, match=message):
            RecommenderBundle.load(folder)


@pytest.mark.parametrize(
    "part",
    [
        "model.safetensors",
        "semantic_ids.safetensors",
        "catalogue.json",
        "bundle.json",
        "quantizer/quantizer.json",
        "quantizer/text.safetensors",
    ],
)
def test_a_part_of_another_good_bundle_is_refused(
    part: str, bundle_folder: Path, fitted: FittedRecommender, tmp_path: Path
) -> None:
    """Each part taken from a bundle of the same sizes that loads by itself; no part is trusted for being well-made."""
    weights, other, mixed = (tmp_path / name for name in ("weights", "other", "mixed"))
    weights.mkdir()
    other.mkdir()
    fit(num_epochs=1, d_model=32, d_ff=64, dropout=0.0).save(weights)
    write(other, weights, quantizer=b"other")
    catalogue = json.loads((other / "catalogue.json").read_text())
    (other / "catalogue.json").write_text(json.dumps(catalogue[::-1]))
    ids = load_file(other / "semantic_ids.safetensors")
    save_file({name: tensor.flip(0) for name, tensor in ids.items()}, other / "semantic_ids.safetensors")
    description = json.loads((other / "bundle.json").read_text())
    description["parts"] = {name: digest_of(other / name) for name in description["parts"]}
    (other / "bundle.json").write_text(json.dumps(sealed(description)))
    assert RecommenderBundle.load(other).num_items == RecommenderBundle.load(bundle_folder).num_items
    shutil.copytree(bundle_folder, mixed)
    shutil.copyfile(other / part, mixed / part)
    with pytest.raises(StorageError, match="does not belong to this bundle"):
        RecommenderBundle.load(mixed)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda said: said["decoding"].update(beam_width=1), "was changed after it was written"),
        (lambda said: said["provenance"].update(dataset="other"), "was changed after it was written"),
        (lambda said: said["recommender"].update(d_kv=4), "was changed after it was written"),
        (lambda said: said.pop("digest"), "was changed after it was written"),
        (lambda said: said.update(format_version=3), "has format 3; this package reads format 2"),
        (lambda said: said.update(decoding=[]), "is missing or not a bundle's description"),
        (lambda said: said.update(format_version=1, recommender={}), "does not describe a model"),
    ],
)
def test_an_edited_description_is_refused(
    edit: Callable[[dict], object], message: str, bundle_folder: Path, tmp_path: Path
) -> None:
    """Settings decide what a model answers, so `bundle.json` vouches for itself as it does for the parts."""
    folder = tmp_path / "edited"
    shutil.copytree(bundle_folder, folder)
    said = json.loads((folder / "bundle.json").read_text())
    edit(said)
    (folder / "bundle.json").write_text(json.dumps(said))
    with pytest.raises(StorageError, match=message):
        RecommenderBundle.load(folder)


def test_a_bundle_of_the_first_format_still_loads(bundle_folder: Path, tmp_path: Path) -> None:
    """A champion may have been registered before descriptions had a digest of their own."""
    folder = tmp_path / "old"
    shutil.copytree(bundle_folder, folder)
    said = json.loads((folder / "bundle.json").read_text())
    del said["digest"]
    (folder / "bundle.json").write_text(json.dumps(said | {"format_version": 1}))
    histories = [["item/3 ü", "item/4 ü"]]
    new, old = (RecommenderBundle.load(path).recommend_ids(histories, k=5) for path in (bundle_folder, folder))
    assert old == new


def test_the_quantizer_is_there_for_who_asks_for_it(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Its files are those of the training; a bundle whose IDs were given, or that is older, has none and loads."""
    for name, content in (("with", b"{}"), ("without", None)):
        (tmp_path / name / "bundle").mkdir(parents=True)
        fitted.save(tmp_path / name)
        write(tmp_path / name / "bundle", tmp_path / name, quantizer=content)
    bundle = RecommenderBundle.load(tmp_path / "with" / "bundle")
    assert bundle.quantizer_folder == tmp_path / "with" / "bundle" / "quantizer"
    assert sorted(path.name for path in bundle.quantizer_folder.iterdir()) == ["quantizer.json", "text.safetensors"]
    assert RecommenderBundle.load(tmp_path / "without" / "bundle").quantizer_folder is None
    np.testing.assert_array_equal(bundle.codes["image"], codes(2))


def test_a_bundle_tells_the_semantic_ids_by_item_id(bundle_folder: Path) -> None:
    """Text codes, then image codes, under the shop's key."""
    ids = RecommenderBundle.load(bundle_folder).semantic_ids
    assert list(ids) == [f"item/{index} ü" for index in range(NUM_ITEMS)]
    assert ids["item/7 ü"] == (tuple(codes(1)[7].tolist()), tuple(codes(2)[7].tolist()))


def test_a_bundle_is_the_same_bytes_for_the_same_parts(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Nothing in it depends on the clock or the folder."""
    weights = tmp_path / "weights"
    weights.mkdir()
    fitted.save(weights)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, weights)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "bundle.json").read_text())["provenance"] == {"dataset": "cycle"}
