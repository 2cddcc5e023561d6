"""Anchors of items that the collaborative model behind the quantizer never saw."""

from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.semantic_ids import Anchors, OwnedIds, RetiredIds, append_semantic_ids, assign_semantic_ids
from tests.semantic_ids.two_modalities import CPU, collaborative_vectors, fitted, tiny, two_modalities

TEXT, IMAGE = two_modalities()


def test_a_new_item_gets_the_mean_anchor_of_its_neighbours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and picture count alike; length does not; neighbours without an anchor of their own are passed over."""
    monkeypatch.setattr("macrec_pipeline.semantic_ids.anchors.NUM_NEIGHBOURS", 2)
    anchors = Anchors(["a", "b", "c"], np.array([[1, 0], [3, 0], [0, 50]], dtype=np.float32))
    text = np.array([[0, 1], [9, 0], [8, 1], [1, 0], [1, 0]], dtype=np.float32)  # c, a, b, new, another new
    found = anchors.of(["c", "a", "b", "new", "too"], {"text": text, "image": text})
    assert found.tolist() == [[0, 50], [1, 0], [3, 0], [2, 0], [2, 0]]
    nobody = anchors.of(["x", "y"], {"text": text[:2], "image": text[:2]})
    np.testing.assert_allclose(nobody, [[4 / 3, 50 / 3]] * 2, rtol=1e-6)


def test_anchors_come_back_from_their_folder(tmp_path: Path) -> None:
    """To the bit, with any Unicode in the ids; without them the error says what to do."""
    vectors = collaborative_vectors(3)
    Anchors(["ä/1", '"', "日"], vectors).save(tmp_path)
    read = Anchors.load(tmp_path)
    assert read.item_ids == ["ä/1", '"', "日"]
    np.testing.assert_array_equal(read.vectors, vectors)
    (tmp_path / "anchors.json").write_text('["one"]')
    with pytest.raises(StorageError, match=r"names 1 items.*holds 3"):
        Anchors.load(tmp_path)
    (tmp_path / "anchors.json").unlink()
    with pytest.raises(StorageError, match=r"identity\.mode=new"):
        Anchors.load(tmp_path)


def test_an_anchored_quantizer_takes_new_items() -> None:
    """Old items have the anchors of the fit and do not drift; a new one lands near those that it is like."""
    quantizer = fitted(
        tiny(method="residual_k_means", collaborative_input_weight=0.5), collaborative=collaborative_vectors()
    )
    names = [str(item) for item in range(100)]
    anchors = Anchors(names, collaborative_vectors())
    ids = assign_semantic_ids(quantizer, TEXT, IMAGE, device=CPU, collaborative_vectors=collaborative_vectors())
    codes, moved = (
        {"text": ids.text_codes, "image": ids.image_codes},
        {"text": ids.text_moved, "image": ids.image_moved},
    )
    table = OwnedIds(names, codes, moved)
    text, image = np.concatenate([TEXT[:1], TEXT]), np.concatenate([IMAGE[:1], IMAGE])
    given = anchors.of(["new", *names], {"text": text, "image": image})
    np.testing.assert_array_equal(given[1:], collaborative_vectors())
    appended = append_semantic_ids(
        quantizer,
        text,
        image,
        item_ids=["new", *names],
        previous=table,
        retired=RetiredIds(table.rows(np.zeros(0, dtype=int)), np.zeros(0, dtype=int)),
        now=0,
        retire_for_days=1,
        device=CPU,
        collaborative_vectors=given,
    )
    np.testing.assert_array_equal(appended.assigned.text_codes[1:], ids.text_codes)
    assert appended.drift == {"text": 0.0, "image": 0.0}
    assert appended.is_new.tolist() == [True] + [False] * 100
    assert appended.assigned.text_codes[0, 0] == ids.text_codes[0, 0]
