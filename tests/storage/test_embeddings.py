"""Embeddings as a table, as a matrix, and as a Parquet file."""

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.schemas import EMBEDDINGS, ITEMS
from macrec_pipeline.storage import AssetStore, embedding_table, table_files, vectors_of
from macrec_pipeline.storage.table_files import read_table_file


def items(num_items: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_index": range(num_items),
            "item_id": [f"i{index}" for index in range(num_items)],
            "title": None,
            "text": None,
            "image_path": None,
            "categories": None,
            "num_interactions": 1,
        },
        schema=ITEMS.columns,
    )


def test_a_matrix_is_read_back_as_it_was_written(tmp_path) -> None:
    """The matrix is equal bit for bit, and shares the memory of the table that was read."""
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    imputed = np.array([False, True] * 3 + [False])
    store = AssetStore(tmp_path, "demo")
    store.write_table("text_embeddings", embedding_table(items(7), vectors=vectors, imputed=imputed))
    table = store.read_table("text_embeddings")
    matrix = vectors_of(table)
    assert matrix.dtype == np.float32
    assert matrix.tobytes() == vectors.tobytes()
    assert table["imputed"].to_list() == imputed.tolist()
    assert np.shares_memory(matrix, vectors_of(table))


def test_a_matrix_in_another_memory_order_gives_the_same_table() -> None:
    """A matrix in Fortran order is stored row by row too."""
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = embedding_table(items(4), vectors=np.asfortranarray(vectors), imputed=np.zeros(4, dtype=bool))
    assert vectors_of(table).tolist() == vectors.tolist()


def test_an_empty_table_gives_a_matrix_without_rows() -> None:
    """The table has no rows if, for example, semantic IDs are given."""
    assert vectors_of(EMBEDDINGS.empty()).shape == (0, 1)
    empty = embedding_table(items(0), vectors=np.zeros((0, 4), np.float32), imputed=np.zeros(0, dtype=bool))
    assert vectors_of(empty).shape == (0, 4)


@pytest.mark.parametrize(
    ("vectors", "imputed", "problem"),
    [
        (np.zeros((3, 2)), np.zeros(3, bool), r"float32 \[N, D\], but they are float64"),
        (np.zeros(3, np.float32), np.zeros(3, bool), r"they are float32 \[3\]"),
        (np.zeros((3, 0), np.float32), np.zeros(3, bool), r"they are float32 \[3, 0\]"),
        (np.zeros((4, 2), np.float32), np.zeros(3, bool), "3 items, 4 embeddings and 3 flags"),
        (np.zeros((3, 2), np.float32), np.zeros(2, bool), "3 items, 3 embeddings and 2 flags"),
        (np.zeros((3, 2), np.float32), np.zeros(3), "imputed must be bool"),
    ],
)
def test_wrong_shapes_and_dtypes_are_rejected(vectors, imputed, problem: str) -> None:
    """The error says which dtype, shape or number of rows was found."""
    with pytest.raises(SchemaError, match=problem):
        embedding_table(items(3), vectors=vectors, imputed=imputed)


def _embeddings(num_items: int, dim: int) -> pl.DataFrame:
    vectors = np.random.default_rng(num_items).normal(size=(num_items, dim)).astype(np.float32)
    return embedding_table(items(num_items), vectors=vectors, imputed=np.arange(num_items) % 3 == 0)


@pytest.mark.parametrize("num_items", [0, 1, 4, 9])
def test_row_groups_are_read_into_one_matrix(tmp_path, monkeypatch, num_items: int) -> None:
    """Each group is decoded into its rows of the matrix, and the same table gives the same bytes."""
    monkeypatch.setattr(table_files, "_ROWS_PER_GROUP", 4)
    store, table = AssetStore(tmp_path, "demo"), _embeddings(num_items, 6)
    first = store.write_table("text_embeddings", table)
    path = store.folder("text_embeddings") / "text_embeddings.parquet"
    assert pq.ParquetFile(path).num_row_groups == -(-num_items // 4)
    found = store.read_table("text_embeddings")
    assert found.equals(table)
    assert found.n_chunks() == 1
    assert store.write_table("text_embeddings", table).digest == first.digest


def test_other_libraries_can_read_the_file(tmp_path) -> None:
    """The file is ordinary Parquet with lists of float32: pyarrow and polars read the same vectors."""
    store, table = AssetStore(tmp_path, "demo"), _embeddings(5, 3)
    store.write_table("image_embeddings", table)
    path = store.folder("image_embeddings") / "image_embeddings.parquet"
    assert pl.read_parquet(path).equals(table)
    assert pq.read_table(path)["embedding"].to_pylist() == table["embedding"].to_list()


def test_embeddings_of_an_older_version_are_still_read(tmp_path) -> None:
    """Older versions wrote compressed Parquet with nullable numbers, which gives the same table."""
    table = _embeddings(5, 3)
    table.write_parquet(tmp_path / "older.parquet", compression="zstd")
    assert read_table_file(tmp_path / "older.parquet", EMBEDDINGS).equals(table)


def test_a_file_without_vectors_breaks_the_schema(tmp_path) -> None:
    """Lists of variable length, as another version might write them, are rejected by the schema, not by the reader."""
    table = _embeddings(3, 2).with_columns(pl.col("embedding").arr.to_list())
    table.write_parquet(tmp_path / "lists.parquet")
    found = read_table_file(tmp_path / "lists.parquet", EMBEDDINGS)
    with pytest.raises(SchemaError, match="'embedding' is List"):
        EMBEDDINGS.check(found)


def test_damaged_embeddings_are_rejected_wherever_the_damage_is(tmp_path) -> None:
    """Decoding runs while the file is hashed, but the error is always about the hash, not about decoding."""
    store = AssetStore(tmp_path, "demo")
    store.write_table("text_embeddings", _embeddings(40, 8))
    path = store.folder("text_embeddings") / "text_embeddings.parquet"
    intact = path.read_bytes()
    damaged = [
        intact[:position] + bytes([intact[position] ^ 0xFF]) + intact[position + 1 :]
        for position in range(0, len(intact), 41)
    ]
    for content in [*damaged, intact[: len(intact) // 2], b""]:
        path.write_bytes(content)
        with pytest.raises(StorageError, match=r"was changed after it was written.*run `macrec run demo`"):
            store.read_table("text_embeddings")
    path.unlink()
    with pytest.raises(StorageError, match=r"text_embeddings.parquet is missing"):
        store.read_table("text_embeddings")
