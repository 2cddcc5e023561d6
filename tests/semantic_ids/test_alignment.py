"""Vectors of a model that was trained again are turned into the axes of the earlier one."""

import numpy as np
import pytest

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids import (
    Anchors,
    IdsByItem,
    LearnedVectors,
    RetiredIds,
    align,
    append_semantic_ids,
    assign_semantic_ids,
)
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities

WIDTH = 5
NUM_ITEMS, NUM_GROUPS = 100, 8


def orthogonal(seed: int, *, determinant: int) -> np.ndarray:
    """Return a random orthogonal matrix: a rotation with determinant 1, one with a reflection with -1."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]
    if np.sign(np.linalg.det(matrix)) != determinant:
        matrix[:, 0] *= -1
    return matrix


@pytest.mark.parametrize("determinant", [1, -1])
def test_a_known_motion_is_recovered(determinant: int) -> None:
    """The rotation and the shift are found, and an item that was not among the common ones lands where it belongs."""
    old = np.random.default_rng(3).normal(size=(40, WIDTH)) + 7
    rotation = orthogonal(4, determinant=determinant)
    new = (old - 2) @ rotation.T - 30
    alignment = align(new[:30], old[:30])
    np.testing.assert_allclose(alignment.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(alignment.apply(new), old, atol=1e-5)
    assert alignment.residual == pytest.approx(0, abs=1e-20)
    assert np.linalg.norm(new[30:] - old[30:], axis=1).min() > 10


def test_with_noise_the_motion_is_the_best_one() -> None:
    """No small turn away from it brings the vectors closer, and the residual is the share of the noise."""
    generator = np.random.default_rng(5)
    old = generator.normal(size=(500, WIDTH))
    new = old @ orthogonal(6, determinant=1) + 0.1 * generator.normal(size=old.shape)
    alignment = align(new, old)

    def distance(rotation: np.ndarray) -> float:
        moved = (new - alignment.source_mean) @ rotation + alignment.target_mean
        return float(np.square(moved - old).sum())

    best = distance(alignment.rotation)
    np.testing.assert_allclose(alignment.rotation @ alignment.rotation.T, np.eye(WIDTH), atol=1e-12)
    for angle in (0.01, -0.01):
        turn = np.eye(WIDTH)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        assert distance(alignment.rotation @ turn) > best
    assert alignment.residual == pytest.approx(0.01, rel=0.1)


def test_vectors_that_do_not_belong_together_are_an_error() -> None:
    """The message has both shapes."""
    with pytest.raises(SemanticIdError, match=r"\(3, 5\) cannot be aligned with vectors of shape \(3, 4\)"):
        align(np.zeros((3, 5)), np.zeros((3, 4)))
    with pytest.raises(SemanticIdError, match="at least one"):
        align(np.zeros((0, 5)), np.zeros((0, 5)))


def grouped_vectors() -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each item, int64 [N], and collaborative vectors, float32 [N, F], that show it clearly."""
    generator = np.random.default_rng(11)
    groups = generator.integers(NUM_GROUPS, size=NUM_ITEMS)
    centres = generator.normal(size=(NUM_GROUPS, WIDTH)) * 10
    return groups, (centres[groups] + 0.01 * generator.normal(size=(NUM_ITEMS, WIDTH))).astype(np.float32)


@pytest.mark.parametrize("is_aligned", [True, False])
def test_a_new_item_gets_the_first_code_of_its_twin_after_the_space_has_turned(
    is_aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new item is used like an old one, its twin, but has the content of an item of another group.

    Content alone would put it with the wrong group, and so do vectors in the new axes, which is what the second case
    shows.
    """
    text, image = two_modalities(NUM_ITEMS)
    groups, collaborative = grouped_vectors()
    config = tiny(method="residual_k_means", collaborative_input_weight=20)
    quantizer = fitted(config, collaborative=collaborative)
    item_ids = [f"old {item}" for item in range(NUM_ITEMS)]
    ids = assign_semantic_ids(quantizer, text, image, device=CPU, collaborative_vectors=collaborative)
    table = IdsByItem(item_ids, ids.codes, ids.moved)
    # k-means can split a group between two codes; a twin is an item of a group that has a single one
    is_whole = np.array([len(set(ids.text_codes[groups == group, 0])) == 1 for group in groups])
    twins = np.flatnonzero(is_whole)[:20]
    assert len(set(groups[twins])) > 2
    lookalikes = np.array([np.flatnonzero(groups != groups[twin])[number] for number, twin in enumerate(twins)])
    turned = (collaborative @ orthogonal(12, determinant=-1) + 3).astype(np.float32)
    if not is_aligned:
        monkeypatch.setattr("macrec_pipeline.semantic_ids.alignment.Alignment.apply", lambda _, vectors: vectors)
    content = {"text": np.concatenate([text, text[lookalikes]]), "image": np.concatenate([image, image[lookalikes]])}
    new_ids = [f"new {item_ids[twin]}" for twin in twins]
    learned = LearnedVectors(np.concatenate([turned, turned[twins]]), np.ones(NUM_ITEMS + len(twins), dtype=bool))
    vectors = Anchors(item_ids, collaborative).for_items([*item_ids, *new_ids], content, learned=learned)
    np.testing.assert_array_equal(vectors[:NUM_ITEMS], collaborative)
    appended = append_semantic_ids(
        quantizer,
        content["text"],
        content["image"],
        item_ids=[*item_ids, *new_ids],
        previous=table,
        retired=RetiredIds(table.select(np.zeros(0, dtype=int)), np.zeros(0, dtype=int)),
        now=0,
        retire_for_days=1,
        device=CPU,
        collaborative_vectors=vectors,
    )
    agreement = (appended.assigned.text_codes[NUM_ITEMS:, 0] == ids.text_codes[twins, 0]).mean()
    if is_aligned:
        assert agreement == 1.0
    else:
        assert agreement < 0.5


def test_vectors_that_were_hardly_trained_are_not_used() -> None:
    """An item that was too rarely seen, and any item of a space without enough common items, goes by its content."""
    generator = np.random.default_rng(13)
    anchors = Anchors([str(item) for item in range(20)], generator.normal(size=(20, WIDTH)).astype(np.float32))
    item_ids = [*anchors.item_ids, "seen", "rare"]
    content = {"text": generator.normal(size=(22, 3)).astype(np.float32)}
    vectors = generator.normal(size=(22, WIDTH)).astype(np.float32)
    by_content = anchors.for_items(item_ids, content)
    reliable = np.array([True] * 21 + [False])
    mixed = anchors.for_items(item_ids, content, learned=LearnedVectors(vectors, reliable))
    np.testing.assert_array_equal(mixed[[*range(20), 21]], by_content[[*range(20), 21]])
    expected = align(vectors[:20], anchors.vectors).apply(vectors[20])
    np.testing.assert_array_equal(mixed[20], expected)
    reliable[:15] = False  # five common items in five dimensions
    too_few = anchors.for_items(item_ids, content, learned=LearnedVectors(vectors, reliable))
    np.testing.assert_array_equal(too_few, by_content)
