"""A new item with a text and an image is recommended before it has any interaction.

Nothing is trained for it: the quantizer and the recommender stay as they are, the item gets a free ID near those of
similar items, and only the bundle is written again.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.config import DecodingConfig, QuantizerConfig, RecommenderConfig
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender
from macrec_pipeline.semantic_ids import (
    IdsByItem,
    RetiredIds,
    append_semantic_ids,
    assign_semantic_ids,
    fit_quantizer,
)

CPU = torch.device("cpu")
KINDS, COPIES, NEW_KIND = 8, 5, 3
NUM_ITEMS = KINDS * COPIES
CONFIG = QuantizerConfig(method="residual_k_means", num_levels=3, codebook_size=KINDS)
SMALL = RecommenderConfig(
    d_model=32,
    d_ff=64,
    d_kv=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout=0.0,
    history_length=5,
    encoding="item_causal",
    batch_size=256,
    learning_rate=1e-2,
    num_epochs=12,
)


def embeddings(kinds: np.ndarray) -> dict[str, np.ndarray]:
    """Items of the same kind have similar text and image embeddings."""
    generator = np.random.default_rng(1)
    return {
        modality: (
            generator.normal(size=(KINDS, 16))[kinds] * 4 + generator.normal(size=(len(kinds), 16)) * 0.3
        ).astype(np.float32)
        for modality in ("text", "image")
    }


def walks(num_users: int = 150) -> list[np.ndarray]:
    """Return histories in which each user takes any item of a kind, then any item of the next kind, and so on."""
    generator = np.random.default_rng(2)
    return [
        (generator.integers(KINDS) + np.arange(8)) % KINDS * COPIES + generator.integers(COPIES, size=8)
        for _ in range(num_users)
    ]


@pytest.mark.slow
def test_a_new_item_is_recommended_on_its_first_day(tmp_path: Path) -> None:
    """A new item is among the ten best of 41 for nearly all histories that lead to its kind, and for few others."""
    kinds = np.append(np.repeat(np.arange(KINDS), COPIES), NEW_KIND)  # the last one is new
    vectors = embeddings(kinds)
    old = {modality: matrix[:-1] for modality, matrix in vectors.items()}
    labels = np.zeros(NUM_ITEMS, dtype=np.int64)
    quantizer = fit_quantizer(old["text"], old["image"], labels, labels, CONFIG, seed=1, device=CPU)
    ids = assign_semantic_ids(quantizer, old["text"], old["image"], device=CPU)
    codes = {"text": ids.text_codes, "image": ids.image_codes}
    fitted = fit_recommender(walks(), *codes.values(), codebook_size=KINDS, config=SMALL, seed=3, device=CPU)
    (tmp_path / "weights").mkdir()
    fitted.save(tmp_path / "weights")

    item_ids = [f"p{item:02d}" for item in range(NUM_ITEMS)]
    table = IdsByItem(item_ids, ids.codes, ids.moved)
    appended = append_semantic_ids(
        quantizer,
        vectors["text"],
        vectors["image"],
        item_ids=[*item_ids, "new"],
        previous=table,
        retired=RetiredIds(table.select(np.zeros(0, dtype=int)), np.zeros(0, dtype=int)),
        now=0,
        retire_for_days=1,
        device=CPU,
    )
    (tmp_path / "bundle").mkdir()
    RecommenderBundle.write(
        tmp_path / "bundle",
        recommender_folder=tmp_path / "weights",
        item_ids=[*item_ids, "new"],
        popularity=np.append(np.ones(NUM_ITEMS, dtype=np.int64), 0),
        text_codes=appended.assigned.text_codes,
        image_codes=appended.assigned.image_codes,
        codebook_size=KINDS,
        decoding=DecodingConfig().model_dump(mode="json"),
        catalogue=[{"title": item_id, "image_path": None} for item_id in [*item_ids, "new"]],
        provenance={},
    )
    bundle = RecommenderBundle.load(tmp_path / "bundle")
    assert _share_with_the_new_item(bundle, leads_to_it=True) > 0.9
    assert _share_with_the_new_item(bundle, leads_to_it=False) < 0.05


def _share_with_the_new_item(bundle: RecommenderBundle, *, leads_to_it: bool) -> float:
    """Return the share of histories, of those that lead to its kind or the others, with the new item in the top ten."""
    last_kinds = [(NEW_KIND - 1) % KINDS] if leads_to_it else [kind for kind in range(KINDS) if kind != NEW_KIND - 1]
    generator = np.random.default_rng(4)
    histories = [
        [f"p{(last_kind - 2 + step) % KINDS * COPIES + generator.integers(COPIES):02d}" for step in range(3)]
        for last_kind in last_kinds
        for _ in range(40)
    ]
    return float(np.mean(["new" in recommended.item_ids for recommended in bundle.recommend_ids(histories, k=10)]))
