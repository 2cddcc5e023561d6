"""The reader `indexed` and what it brings ready-made."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.data.readers.indexed import indexed_problems, read_indexed_interactions, read_indexed_items
from macrec_pipeline.data.readers.precomputed import precomputed_embeddings, precomputed_semantic_ids
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import ConfigError, MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_TEXT = {"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_9>"], "2": ["<a_0>", "<b_0>"]}
_IMAGE = {"0": ["<A_3>", "<B_3>"], "1": ["<A_4>", "<B_0>"], "2": ["<A_5>", "<B_1>"]}


def _spec(**changes: Any) -> DatasetSpec:
    source = {"reader": "indexed", "folder": "toys", "prefix": "Toys", "text_index": "t.json", "image_index": "i.json"}
    return DatasetSpec(name="toys", title="Toys", source=source | changes)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Three items, two users, semantic IDs and embeddings; one file is packed."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "Toys.inter.json.gz").write_bytes(gzip.compress(json.dumps({"0": [2, 0, 2], "1": [1]}).encode()))
    (folder / "Toys.item2id").write_text("B7\t0\nA1\t1\nC 3\t2\n")
    (folder / "Toys.user2id").write_text("anna\t0\nbert\t1\n")
    (folder / "Toys.t.json").write_text(json.dumps(_TEXT))
    (folder / "Toys.i.json").write_text(json.dumps(_IMAGE))
    np.save(folder / "Toys.emb.npy", np.arange(6, dtype=np.float64).reshape(3, 2))
    return tmp_path


def _catalogue(*item_ids: str) -> pl.DataFrame:
    return pl.DataFrame({"item_index": range(len(item_ids)), "item_id": item_ids})


def test_sequences_become_rows_in_their_order(toys: Path) -> None:
    """Ids are the shop's own, times rise with the position, repeats stay."""
    table = read_indexed_interactions(_spec().source, toys)
    RAW_INTERACTIONS.check(table)
    assert table.select("user_id", "item_id", "rating", "source_row").rows() == [
        ("anna", "C 3", None, 1),
        ("anna", "B7", None, 2),
        ("anna", "C 3", None, 3),
        ("bert", "A1", None, 4),
    ]
    times = table["timestamp"].to_list()
    assert [time - times[0] for time in times] == [0, 60_000, 120_000, 0]
    assert table["source_file"].unique().to_list() == ["toys/Toys.inter.json.gz"]


def test_items_have_the_id_as_title_unless_there_are_details(toys: Path) -> None:
    """`X.item.json` is optional; a title from it is part of the text, an id is not."""
    table = read_indexed_items(_spec().source, toys)
    RAW_ITEMS.check(table)
    assert table.select("item_id", "title", "text", "image_path", "source_row").rows() == [
        ("B7", "B7", None, None, 1),
        ("A1", "A1", None, None, 2),
        ("C 3", "C 3", None, None, 3),
    ]
    details = {"0": {"title": "Ball", "description": ["Soft.", "Bounces"]}, "2": {"title": "", "description": "A kite"}}
    (toys / "toys" / "Toys.item.json").write_text(json.dumps(details))
    assert read_indexed_items(_spec().source, toys).select("title", "text").rows() == [
        ("Ball", "Ball. Soft. Bounces."),
        ("A1", None),
        ("C 3", "A kite."),
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Toys.inter.json.gz", '{"0": [7]}', "item 7 of user '0' has no id in toys/Toys.item2id"),
        ("Toys.inter.json.gz", '{"5": [1]}', "user '5' has no id in toys/Toys.user2id"),
        ("Toys.inter.json.gz", '{"0": ["1"]}', "expected a list of item indices"),
        ("Toys.inter.json.gz", "[1]", "holds a JSON list, expected an object"),
        ("Toys.inter.json.gz", "{", "is not readable as JSON"),
        ("Toys.item2id", "A\t0\nB\n", "Toys.item2id line 2: got 'B'"),
        ("Toys.item2id", "A\t0\nB\t0\n", "line 2: the id 'B' or the index 0 was there before"),
    ],
)
def test_files_of_another_form_are_refused(toys: Path, file: str, content: str, message: str) -> None:
    """The message names the file and what in it is wrong."""
    (toys / "toys" / file).write_text(content)
    with pytest.raises(SchemaError, match=message.replace("(", r"\(")):
        read_indexed_interactions(_spec().source, toys)


def test_what_is_missing_is_listed(toys: Path) -> None:
    """Validation names every file that is not there, and half a pair of index files."""
    assert indexed_problems(_spec().source, toys) == []
    (toys / "toys" / "Toys.user2id").unlink()
    (toys / "toys" / "Toys.t.json").unlink()
    problems = indexed_problems(_spec().source, toys)
    assert ["Toys.user2id" in problems[0], "Toys.t.json" in problems[1], len(problems)] == [True, True, 2]
    assert all("MACREC_DATA" in problem for problem in problems)
    assert "go together" in indexed_problems(_spec(text_index=None).source, toys)[-1]
    with pytest.raises(MissingFileError, match=r"Toys\.user2id"):
        read_indexed_interactions(_spec().source, toys)


def test_given_ids_follow_the_catalogue(toys: Path) -> None:
    """Rows are in the order of the catalogue, also of a part of it; K holds the largest code of the whole files."""
    ids = precomputed_semantic_ids(_spec(), toys, _catalogue("A1", "B7"))
    assert ids is not None
    np.testing.assert_array_equal(ids.text_codes, [[1, 9], [1, 2]])
    np.testing.assert_array_equal(ids.image_codes, [[4, 0], [3, 3]])
    assert ids.codebook_size == 16
    assert precomputed_semantic_ids(_spec(text_index=None, image_index=None), toys, _catalogue("A1")) is None
    with pytest.raises(ConfigError, match="go together"):
        precomputed_semantic_ids(_spec(image_index=None), toys, _catalogue("A1"))


@pytest.mark.parametrize("largest", [(0, 2), (1, 2), (2, 4), (255, 256), (256, 512)])
def test_codebook_size_is_the_next_power_of_two(toys: Path, largest: tuple[int, int]) -> None:
    """The largest code 255 needs 256 codes, 256 needs 512; never fewer than two."""
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
def test_ids_with_other_levels_are_refused(toys: Path, tokens: Any) -> None:
    """Every item has L tokens whose letters are its levels, also items that the catalogue lacks."""
    (toys / "toys" / "Toys.t.json").write_text(json.dumps(_TEXT | {"2": tokens}))
    with pytest.raises(SchemaError, match=r"Toys\.t\.json: item 2 has .* expected 2 tokens: <a_CODE>, <b_CODE>"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))


def test_items_without_an_id_are_refused(toys: Path) -> None:
    """An item of the catalogue that the index file lacks is named, and routes must have the same levels."""
    (toys / "toys" / "Toys.i.json").write_text(json.dumps({"0": _IMAGE["0"]}))
    with pytest.raises(SchemaError, match=r"Toys\.i\.json: item 1 has no semantic ID"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))
    with pytest.raises(SchemaError, match=r"'Z' is not in toys/Toys\.item2id"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("Z"))
    (toys / "toys" / "Toys.i.json").write_text(json.dumps({str(item): ["<A_1>"] for item in range(3)}))
    with pytest.raises(SchemaError, match=r"2 levels .* but image IDs 1"):
        precomputed_semantic_ids(_spec(), toys, _catalogue("A1"))


def test_given_embeddings_follow_the_catalogue(toys: Path) -> None:
    """float32 rows in the order of the catalogue, for the route that has them, packed or not."""
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


def test_embeddings_of_another_form_are_refused(toys: Path) -> None:
    """Too few rows, no matrix, and pickled objects are errors that name the file."""
    spec = _spec(text_embeddings="emb.npy")
    for content, message in (
        (np.zeros((2, 4)), "has 2 rows, but Toys.item2id has the index 2"),
        (np.zeros(4), "expected numbers"),
        (np.array([[{}]], dtype=object), "not readable"),
    ):
        np.save(toys / "toys" / "Toys.emb.npy", content, allow_pickle=True)
        with pytest.raises(SchemaError, match=message):
            precomputed_embeddings(spec, toys, _catalogue("C 3"), "text")
