"""Published semantic IDs and embeddings of an indexed data set, in the order of the catalogue."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.data.readers.precomputed import precomputed_embeddings, precomputed_semantic_ids
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import SchemaError

_TEXT = {"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_9>"], "2": ["<a_0>", "<b_0>"]}
_IMAGE = {"0": ["<A_3>", "<B_3>"], "1": ["<A_4>", "<B_0>"], "2": ["<A_5>", "<B_1>"]}


def _spec(**changes: Any) -> DatasetSpec:
    source = {"reader": "indexed", "folder": "toys", "prefix": "Toys", "text_index": "t.json", "image_index": "i.json"}
    return DatasetSpec(name="toys", title="Toys", source=source | changes)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A data folder with the semantic IDs and embeddings of three items."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "Toys.item2id").write_text("B7\t0\nA1\t1\nC 3\t2\n")
    (folder / "Toys.t.json").write_text(json.dumps(_TEXT))
    (folder / "Toys.i.json").write_text(json.dumps(_IMAGE))
    np.save(folder / "Toys.emb.npy", np.arange(6, dtype=np.float64).reshape(3, 2))
    return tmp_path


def _catalogue(*item_ids: str) -> pl.DataFrame:
    return pl.DataFrame({"item_index": range(len(item_ids)), "item_id": item_ids})


def test_semantic_ids_follow_the_catalogue(toys: Path) -> None:
    """Rows have the order of the catalogue, also if it lacks items; K exceeds the largest code of both whole files."""
    ids = precomputed_semantic_ids(_spec(), toys, _catalogue("A1", "B7"))
    assert ids is not None
    np.testing.assert_array_equal(ids.text_codes, [[1, 9], [1, 2]])
    np.testing.assert_array_equal(ids.image_codes, [[4, 0], [3, 3]])
    assert ids.codebook_size == 16
    assert precomputed_semantic_ids(_spec(text_index=None, image_index=None), toys, _catalogue("A1")) is None


def test_the_ids_of_one_modality_are_enough(toys: Path) -> None:
    """The other modality has none, and K exceeds the largest code of the file that is named."""
    text_only = precomputed_semantic_ids(_spec(image_index=None), toys, _catalogue("A1"))
    image_only = precomputed_semantic_ids(_spec(text_index=None), toys, _catalogue("A1"))
    assert text_only is not None
    assert image_only is not None
    np.testing.assert_array_equal(text_only.text_codes, [[1, 9]])
    np.testing.assert_array_equal(image_only.image_codes, [[4, 0]])
    assert (text_only.image_codes, image_only.text_codes) == (None, None)
    assert (text_only.codebook_size, image_only.codebook_size) == (16, 8)


def test_without_id_lists_the_numbers_are_the_ids(toys: Path) -> None:
    """Semantic IDs and embeddings belong to the item whose id is the number."""
    (toys / "toys" / "Toys.item2id").unlink()
    (toys / "toys" / "Toys.inter.json").write_text(json.dumps({"0": [2, 0]}))
    spec = _spec(image_index=None, text_embeddings="emb.npy")
    ids = precomputed_semantic_ids(spec, toys, _catalogue("2", "1"))
    assert ids is not None
    np.testing.assert_array_equal(ids.text_codes, [[0, 0], [1, 9]])
    np.testing.assert_array_equal(precomputed_embeddings(spec, toys, _catalogue("2", "1"), "text"), [[4, 5], [2, 3]])


@pytest.mark.parametrize("largest", [(0, 2), (1, 2), (2, 4), (255, 256), (256, 512)])
def test_codebook_size_is_the_next_power_of_two(toys: Path, largest: tuple[int, int]) -> None:
    """A largest code of 255 needs 256 codes, one of 256 needs 512; K is at least 2."""
    code, expected = largest
    for file, letter in (("Toys.t.json", "a"), ("Toys.i.json", "A")):
        (toys / "toys" / file).write_text(json.dumps({"1": [f"<{letter}_{code}>"]}))
    ids = precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))
    assert ids is not None
    assert ids.codebook_size == expected


@pytest.mark.parametrize(
    "tokens",
    [
        ["<a_1>"],
        ["<b_1>", "<a_2>"],
        ["<a_1>", "<b_2>", "<c_3>"],
        ["<a_1>", "b_2"],
        ["<a_1>", 2],
        "<a_1>",
        ["<a_-1>", "<b_1>"],
    ],
)
def test_malformed_semantic_ids_are_errors(toys: Path, tokens: Any) -> None:
    """Every item needs L tokens with the letters of their levels, also an item that is not in the catalogue."""
    (toys / "toys" / "Toys.t.json").write_text(json.dumps(_TEXT | {"2": tokens}))
    with pytest.raises(SchemaError, match=r"Toys\.t\.json: item 2 has .* expected 2 tokens: <a_CODE>, <b_CODE>"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))


def test_missing_semantic_ids_are_errors(toys: Path) -> None:
    """The message names the item; text and image IDs must have the same number of levels."""
    (toys / "toys" / "Toys.i.json").write_text(json.dumps({"0": _IMAGE["0"]}))
    with pytest.raises(SchemaError, match=r"Toys\.i\.json: item 1 has no semantic ID"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))
    with pytest.raises(SchemaError, match=r"'Z' is not in toys/Toys\.item2id"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("Z"))
    (toys / "toys" / "Toys.i.json").write_text(json.dumps({str(item): ["<A_1>"] for item in range(3)}))
    with pytest.raises(SchemaError, match=r"2 levels .* but image IDs 1"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))


def test_embeddings_follow_the_catalogue(toys: Path) -> None:
    """Rows are float32 in the order of the catalogue; the file may be gzipped, and a modality may have none."""
    spec = _spec(text_embeddings="emb.npy")
    vectors = precomputed_embeddings(spec, toys, _catalogue("C 3", "B7"), "text")
    assert vectors is not None
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[4, 5], [0, 1]])
    assert precomputed_embeddings(spec, toys, _catalogue("B7"), "image") is None
    plain = toys / "toys" / "Toys.emb.npy"
    (toys / "toys" / "Toys.emb.npy.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    np.testing.assert_array_equal(precomputed_embeddings(spec, toys, _catalogue("C 3", "B7"), "text"), vectors)


def test_malformed_embeddings_are_errors(toys: Path) -> None:
    """Too few rows, an array that is no matrix, and pickled objects are refused with the name of the file."""
    spec = _spec(text_embeddings="emb.npy")
    for content, message in (
        (np.zeros((2, 4)), "has 2 rows, but toys/Toys.item2id has the index 2"),
        (np.zeros(4), "expected numbers"),
        (np.array([[{}]], dtype=object), "cannot be read"),
    ):
        np.save(toys / "toys" / "Toys.emb.npy", content, allow_pickle=True)
        with pytest.raises(SchemaError, match=message):
            precomputed_embeddings(spec, toys, _catalogue("C 3"), "text")
