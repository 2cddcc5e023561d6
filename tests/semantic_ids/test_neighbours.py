"""Imputing a missing modality from neighbours: by hand, and compared with imputing the mean."""

import numpy as np
import pytest

from macrec_pipeline.semantic_ids import impute_from_neighbours, neighbours


def arrays(text: list[list[float]], image: list[list[float]]) -> dict[str, np.ndarray]:
    return {"text": np.array(text, dtype=np.float32), "image": np.array(image, dtype=np.float32)}


def flags(text: list[int], image: list[int], num_items: int) -> dict[str, np.ndarray]:
    return {name: np.isin(np.arange(num_items), rows) for name, rows in (("text", text), ("image", image))}


def test_neighbours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 4 has a text in the direction of those of items 0 and 1; item 5 has an image like that of item 3."""
    monkeypatch.setattr(neighbours, "NUM_NEIGHBOURS", 2)
    given = arrays(
        [[1, 0], [2, 0.1], [0, 1], [-1, 0.5], [50, 1], [9, 9]],
        [[1, 1], [3, 5], [0, 4], [4, 0], [7, 7], [9, -1]],
    )
    before = {name: values.copy() for name, values in given.items()}
    filled = impute_from_neighbours(given, flags([5], [4], 6))
    np.testing.assert_allclose(filled["image"][4], [2, 3])
    np.testing.assert_allclose(filled["text"][5], [0, 0.25])  # cosines to 3 and 0 are the largest
    for name, row in (("image", 4), ("text", 5)):
        rest = np.delete(np.arange(6), row)
        np.testing.assert_array_equal(filled[name][rest], before[name][rest])
        np.testing.assert_array_equal(given[name], before[name])


def test_items_without_both_modalities_or_without_neighbours_are_unchanged() -> None:
    """One catalogue has an item that lacks both modalities; in the other, no item has both."""
    given = arrays([[1, 0], [0, 1], [5, 5]], [[1, 1], [2, 2], [6, 6]])
    lacks_both = impute_from_neighbours(given, flags([2], [2], 3))
    assert all(lacks_both[name] is given[name] for name in given)
    disjoint = impute_from_neighbours(given, flags([0], [1, 2], 3))
    assert all(disjoint[name] is given[name] for name in given)


def test_all_complete_items_count_if_they_are_fewer_than_the_neighbours() -> None:
    """With two complete items, the result is their mean."""
    given = arrays([[1, 0], [0, 1], [1, 1]], [[1, 3], [3, 1], [0, 0]])
    np.testing.assert_allclose(impute_from_neighbours(given, flags([], [2], 3))["image"][2], [2, 2])


def test_neighbours_are_more_accurate_than_the_mean_and_give_distinct_vectors() -> None:
    """Where texts determine the images up to noise, hidden images are imputed with a third of the error of the mean."""
    draw = np.random.default_rng(3)
    kinds = draw.normal(size=(20, 8))[draw.integers(0, 20, 400)]
    text = (kinds @ draw.normal(size=(8, 16)) + 0.2 * draw.normal(size=(400, 16))).astype(np.float32)
    image = (kinds @ draw.normal(size=(8, 12)) + 0.2 * draw.normal(size=(400, 12))).astype(np.float32)
    hidden = np.arange(400) % 8 == 0
    mean = np.where(hidden[:, None], image[~hidden].mean(axis=0), image).astype(np.float32)
    filled = impute_from_neighbours({"text": text, "image": mean}, {"text": np.zeros(400, bool), "image": hidden})

    def error(imputed: np.ndarray) -> float:
        return float(np.square(imputed[hidden] - image[hidden]).mean())

    assert error(filled["image"]) < error(mean) / 3
    assert len(np.unique(filled["image"][hidden], axis=0)) > 1
