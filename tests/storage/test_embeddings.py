import numpy as np
import polars as pl
import pytest

from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import EMBEDDINGS, ITEMS
from macrec_pipeline.storage import AssetStore, embedding_table, vectors_of
from macrec_pipeline.storage.table_files import find_table_file, read_table_file


def items(num_items: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_index": range(num_items),
            "item_id": [f"i{index}" for index in range(num_items)],
            "title": None,
            "text": None,
            "image_path": None,
            "num_interactions": 1,
        },
        schema=ITEMS.columns,
    )


def test_a_matrix_survives_the_disk(tmp_path) -> None:
    """The matrix that comes back from the parquet file is the one that was written, bit for bit, without a copy."""
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
    """A transposed view is laid down row by row all the same."""
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = embedding_table(items(4), vectors=np.asfortranarray(vectors), imputed=np.zeros(4, dtype=bool))
    assert vectors_of(table).tolist() == vectors.tolist()


def test_no_rows() -> None:
    """An empty table, which stands for given semantic IDs, gives a matrix of no rows."""
    assert vectors_of(EMBEDDINGS.empty()).shape == (0, 1)
    empty = embedding_table(items(0), vectors=np.zeros((0, 4), np.float32), imputed=np.zeros(0, dtype=bool))
    assert vectors_of(empty).shape == (0, 4)


@pytest.mark.parametrize(
    ("vectors", "imputed", "problem"),
    [
        (np.zeros((3, 2)), np.zeros(3, bool), r"float32 \[N, D\], got float64"),
        (np.zeros(3, np.float32), np.zeros(3, bool), r"got float32 \[3\]"),
        (np.zeros((3, 0), np.float32), np.zeros(3, bool), r"got float32 \[3, 0\]"),
        (np.zeros((4, 2), np.float32), np.zeros(3, bool), "3 items, 4 embeddings, 3 flags"),
        (np.zeros((3, 2), np.float32), np.zeros(2, bool), "3 items, 3 embeddings, 2 flags"),
        (np.zeros((3, 2), np.float32), np.zeros(3), "imputed must be bool"),
    ],
)
def test_what_does_not_fit_is_refused(vectors, imputed, problem: str) -> None:
    """A wrong dtype, shape or number of rows is told with what was got."""
    with pytest.raises(SchemaError, match=problem):
        embedding_table(items(3), vectors=vectors, imputed=imputed)


def test_embeddings_are_mapped_and_outlive_their_version(tmp_path) -> None:
    """Reading copies nothing; the matrix stays what it was when its file has been replaced and removed."""
    store = AssetStore(tmp_path, "demo")
    for value in range(4):
        vectors = np.full((3, 8), value, dtype=np.float32)
        store.write_table("text_embeddings", embedding_table(items(3), vectors=vectors, imputed=np.zeros(3, bool)))
        if value == 0:
            path = store.folder("text_embeddings") / "text_embeddings.arrow"
            held = vectors_of(store.read_table("text_embeddings"))
    assert not path.exists()
    assert not held.flags.owndata
    assert not held.flags.writeable
    assert (held == 0).all()


def test_embeddings_of_an_older_version_are_still_read(tmp_path) -> None:
    """A version that holds parquet, as they once did, gives the same table."""
    table = embedding_table(items(3), vectors=np.eye(3, dtype=np.float32), imputed=np.zeros(3, bool))
    table.write_parquet(tmp_path / "text_embeddings.parquet")
    path = find_table_file(tmp_path, EMBEDDINGS, "text_embeddings")
    assert path.suffix == ".parquet"
    assert read_table_file(path).equals(table)
