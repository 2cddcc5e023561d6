"""Similar items come from the bundle: by quantized latent, by embedding and by prefix, k of them and never the item."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from macrec_pipeline.config import DecodingConfig
from macrec_pipeline.errors import RequestError, StorageError, UnknownItemError
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from macrec_pipeline.recommender.retrieval.similar_items import (
    compressed_embeddings,
    cosine_similarities,
    most_similar,
    prefix_similarities,
    quantized_latents,
    similar_ids,
)
from tests.recommender.cyclic_catalogue import NUM_ITEMS, codes

WIDTH = 5
CODEBOOKS = {
    modality: np.random.default_rng(seed).normal(size=(3, 4, WIDTH)).astype(np.float32)
    for seed, modality in enumerate(("text", "image"))
}
EMBEDDINGS = {
    modality: np.random.default_rng(seed).normal(size=(NUM_ITEMS, 40)).astype(np.float32)
    for seed, modality in enumerate(("text", "image"), start=7)
}


def write(
    folder: Path, trained: FittedRecommender, *, with_quantizer: bool = True, with_embeddings: bool = True
) -> Path:
    """Write a bundle of the cyclic catalogue in which item 4 has left the shop."""
    for name in ("weights", "bundle", "quantizer"):
        (folder / name).mkdir(parents=True)
    trained.save(folder / "weights")
    files = []
    for modality, codebooks in CODEBOOKS.items() if with_quantizer else ():
        save_file(
            {"quantizer.codebooks": torch.from_numpy(codebooks)}, folder / "quantizer" / f"{modality}.safetensors"
        )
        files.append(folder / "quantizer" / f"{modality}.safetensors")
    RecommenderBundle.write(
        folder / "bundle",
        recommender_folder=folder / "weights",
        quantizer_files=files,
        item_ids=[f"item-{index}" for index in range(NUM_ITEMS)],
        popularity=np.arange(NUM_ITEMS, dtype=np.int64),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DecodingConfig(store_embeddings=with_embeddings).model_dump(),
        catalogue=[
            {"title": "", "image_path": None, "listed": index != 4, "categories": ["Even"] if index % 2 == 0 else None}
            for index in range(NUM_ITEMS)
        ],
        provenance={},
        embeddings=EMBEDDINGS,
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(trained_model: FittedRecommender, tmp_path_factory: pytest.TempPathFactory) -> RecommenderBundle:
    return RecommenderBundle.load(write(tmp_path_factory.mktemp("similar"), trained_model))


def exact_similarities(method: str, modality: str, item: int) -> list[float]:
    """Compare an item with every item, by plain loops over float vectors and codes."""
    ids = codes(1 if modality == "text" else 2).tolist()
    if method == "prefix":
        return [next((level for level in range(3) if row[level] != ids[item][level]), 3) / 3 for row in ids]
    vectors = EMBEDDINGS[modality]
    if method == "latent":
        vectors = np.array([sum(CODEBOOKS[modality][level][code] for level, code in enumerate(row)) for row in ids])
    return [
        float(np.dot(vector, vectors[item]) / (np.linalg.norm(vector) * np.linalg.norm(vectors[item])))
        for vector in vectors
    ]


@pytest.mark.parametrize("method", ["latent", "embedding", "prefix"])
@pytest.mark.parametrize("modality", ["text", "image", None])
def test_the_items_are_those_of_a_plain_comparison(
    bundle: RecommenderBundle, method: str, modality: str | None
) -> None:
    """All items but the item itself and the unlisted one, by mean similarity, then by popularity."""
    for item in (0, 4, 17):
        found = bundle.similar_items(f"item-{item}", k=NUM_ITEMS, method=method, modality=modality)
        assert found.method == method
        rows = [exact_similarities(method, name, item) for name in ([modality] if modality else ["text", "image"])]
        expected = np.mean(rows, axis=0)
        others = [index for index in range(NUM_ITEMS) if index not in (item, 4)]
        tolerance = 0.01 if method == "embedding" else 1e-6  # embeddings have one byte per number
        assert sorted(found.item_ids) == sorted(f"item-{index}" for index in others)
        for item_id, score in zip(found.item_ids, found.scores, strict=True):
            assert score == pytest.approx(expected[int(item_id.removeprefix("item-"))], abs=tolerance)
        if method == "prefix":
            others.sort(key=lambda index: (-expected[index], -index))  # the popularity is the index
            assert found.item_ids == [f"item-{index}" for index in others]
        shorter = bundle.similar_items(f"item-{item}", k=7, method=method, modality=modality)
        assert (shorter.item_ids, shorter.scores) == (found.item_ids[:7], found.scores[:7])


def test_k_items_come_back_that_the_rules_permit(bundle: RecommenderBundle) -> None:
    """Fewer come back only if fewer are permitted, and none is not an error."""
    even = bundle.similar_items("item-3", k=10, rules=Rules(allowed_categories=["Even"]))
    assert len(even.item_ids) == 10
    assert all(int(item_id.removeprefix("item-")) % 2 == 0 for item_id in even.item_ids)
    assert len(bundle.similar_items("item-3", k=1000).item_ids) == NUM_ITEMS - 2
    assert bundle.similar_items("item-3", rules=Rules(allowed=["item-3", "item-4"])).item_ids == []


def test_requests_that_cannot_be_met_say_what_is_possible(bundle: RecommenderBundle) -> None:
    """An unknown item has an error of its own, which suggests similar ids."""
    with pytest.raises(UnknownItemError, match=r"no item 'item_12'. Did you mean `item-12`"):
        bundle.similar_items("item_12")
    for arguments, message in (
        ({"k": 0}, "`k` is 0, but must be at least 1"),
        ({"method": "taste"}, "`method` must be one of latent, embedding, prefix, but is 'taste'"),
        ({"modality": "sound"}, "`modality` must be one of text, image, but is 'sound'"),
    ):
        with pytest.raises(RequestError, match=message):
            bundle.similar_items("item-1", **arguments)  # type: ignore[arg-type]


def test_a_bundle_without_codebooks_or_embeddings_supports_prefixes(
    trained_model: FittedRecommender, tmp_path: Path
) -> None:
    """This holds for bundles of older versions. The message names the supported methods and how to get the others."""
    bundle = RecommenderBundle.load(write(tmp_path, trained_model, with_quantizer=False, with_embeddings=False))
    assert bundle.similarity_methods == ["prefix"]
    assert bundle.similar_items("item-1").method == "prefix"
    with pytest.raises(RequestError, match=r"Method latent needs .* quantizer.* This version supports prefix\."):
        bundle.similar_items("item-1", method="latent")
    with pytest.raises(RequestError, match=r"decoding.store_embeddings.* This version supports prefix\."):
        bundle.similar_items("item-1", method="embedding")


def test_codebooks_of_another_shape_are_rejected(bundle: RecommenderBundle, tmp_path: Path) -> None:
    """They would give latents of other items without a warning."""
    for modality in ("text", "image"):
        save_file({"quantizer.codebooks": torch.zeros(3, 5, WIDTH)}, tmp_path / f"{modality}.safetensors")
    other = RecommenderBundle(
        bundle._retriever, bundle.catalogue, np.ones(NUM_ITEMS), bundle.description, quantizer_folder=tmp_path
    )
    with pytest.raises(StorageError, match=r"shape \[3, 5, 5\], but the semantic IDs have 3 levels of 4 codes"):
        other.similar_items("item-1", method="latent", modality="text")


def test_similarities_by_hand() -> None:
    """Leading codes in common; sums of codebook entries; angles of 0, 90, 180 and 45 degrees."""
    ids = np.array([[1, 2, 3, 0], [1, 2, 0, 0], [0, 2, 3, 0], [1, 2, 3, 4]])
    assert prefix_similarities(ids, 0).tolist() == [1, 0.5, 0, 0.75]
    books = np.array([[[1.0, 0.0], [0.0, 1.0]], [[10.0, 0.0], [0.0, 10.0]]])
    assert quantized_latents(np.array([[0, 1], [1, 1]]), books).tolist() == [[1, 10], [0, 11]]
    vectors = np.array([[2.0, 0], [0, 3], [-1, 0], [1, 1], [0, 0]])
    assert cosine_similarities(vectors, 0).tolist() == pytest.approx([1, 0, -1, 0.5**0.5, 0])
    assert compressed_embeddings(np.array([[0.5, -1.0], [0, 0]])).tolist() == [[64, -127], [0, 0]]


def test_equal_similarities_are_ordered_by_popularity_then_index() -> None:
    """The item itself and items that are not eligible are left out."""
    best, scores = most_similar(
        [np.array([1.0, 0.5, 0.5, 0.5, 0.9])],
        0,
        k=3,
        eligible=np.array([True, True, True, True, False]),
        popularity=np.array([9, 1, 3, 1, 9]),
    )
    assert (best.tolist(), scores.tolist()) == ([2, 1, 3], [0.5, 0.5, 0.5])


def test_a_suggestion_among_many_ids_takes_no_time() -> None:
    """Of a million ids, only the alphabetical neighbours are compared."""
    ids = [f"P{index:07d}" for index in range(200_000)]
    assert similar_ids("P0123456x", ids).startswith(" Did you mean `P0123456`")
