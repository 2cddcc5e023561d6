"""Collaborative vectors for items that the collaborative model behind the quantizer was not trained on."""

from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.semantic_ids import Anchors, IdsByItem, RetiredIds, append_semantic_ids, assign_semantic_ids
from tests.semantic_ids.two_modalities import CPU, collaborative_vectors, fitted, tiny, two_modalities

TEXT, IMAGE = two_modalities()


def test_a_new_item_gets_the_mean_of_its_neighbours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modalities count equally, the length of an embedding does not count, and new items are never neighbours."""
    monkeypatch.setattr("macrec_pipeline.semantic_ids.anchors.NUM_NEIGHBOURS", 2)
    anchors = Anchors(["a", "b", "c"], np.array([[1, 0], [3, 0], [0, 50]], dtype=np.float32))
    text = np.array([[0, 1], [9, 0], [8, 1], [1, 0], [1, 0]], dtype=np.float32)  # c, a, b and two new items
    vectors = anchors.for_items(["c", "a", "b", "new", "also new"], {"text": text, "image": text})
    assert vectors.tolist() == [[0, 50], [1, 0], [3, 0], [2, 0], [2, 0]]
    without_anchors = anchors.for_items(["x", "y"], {"text": text[:2], "image": text[:2]})
    np.testing.assert_allclose(without_anchors, [[4 / 3, 50 / 3]] * 2, rtol=1e-6)


def test_anchors_are_read_back_from_their_folder(tmp_path: Path) -> None:
    """Vectors come back bit for bit and IDs with any Unicode; an error about damaged files says what to do."""
    vectors = collaborative_vectors(3)
    Anchors(["ä/1", '"', "日"], vectors).save(tmp_path)
    loaded = Anchors.load(tmp_path)
    assert loaded.item_ids == ["ä/1", '"', "日"]
    np.testing.assert_array_equal(loaded.vectors, vectors)
    (tmp_path / "anchors.json").write_text('["one"]')
    with pytest.raises(StorageError, match=r"names 1 items.*has 3 vectors"):
        Anchors.load(tmp_path)
    (tmp_path / "anchors.json").unlink()
    with pytest.raises(StorageError, match=r"cannot be read.*identity\.mode=new"):
        Anchors.load(tmp_path)


def test_a_quantizer_with_collaborative_vectors_takes_new_items() -> None:
    """Old items keep the vectors of the fit and do not drift; a new item gets an ID near those that it resembles."""
    quantizer = fitted(
        tiny(method="residual_k_means", collaborative_input_weight=0.5), collaborative=collaborative_vectors()
    )
    item_ids = [str(item) for item in range(100)]
    anchors = Anchors(item_ids, collaborative_vectors())
    ids = assign_semantic_ids(quantizer, TEXT, IMAGE, device=CPU, collaborative_vectors=collaborative_vectors())
    table = IdsByItem(item_ids, ids.codes, ids.moved)
    text, image = np.concatenate([TEXT[:1], TEXT]), np.concatenate([IMAGE[:1], IMAGE])
    vectors = anchors.for_items(["new", *item_ids], {"text": text, "image": image})
    np.testing.assert_array_equal(vectors[1:], collaborative_vectors())
    appended = append_semantic_ids(
        quantizer,
        text,
        image,
        item_ids=["new", *item_ids],
        previous=table,
        retired=RetiredIds(table.select(np.zeros(0, dtype=int)), np.zeros(0, dtype=int)),
        now=0,
        retire_for_days=1,
        device=CPU,
        collaborative_vectors=vectors,
    )
    np.testing.assert_array_equal(appended.assigned.text_codes[1:], ids.text_codes)
    assert appended.drift == {"text": 0.0, "image": 0.0}
    assert appended.is_new.tolist() == [True] + [False] * 100
    assert appended.assigned.text_codes[0, 0] == ids.text_codes[0, 0]
