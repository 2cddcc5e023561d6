"""The data sets of `datasets/` on their real files."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import CleanTables, clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.indexed import read_index_map, read_json_object
from macrec_pipeline.data.readers.precomputed import precomputed_semantic_ids
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.data.table_checks import histories_problems, interactions_problems, items_problems
from macrec_pipeline.datasets import DatasetSpec, MovielensSource, load_dataset

_DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def _spec(name: str, data_dir: Path) -> DatasetSpec:
    spec = load_dataset(name, _DATASETS)
    problems = validate_source(spec, data_dir)
    if any("does not exist" in problem for problem in problems):
        pytest.skip(f"the real data is missing: {problems[0]}")
    assert problems == []
    return spec


def _clean(spec: DatasetSpec, data_dir: Path) -> tuple[CleanTables, pl.DataFrame]:
    raw_items = read_raw_items(spec, data_dir)
    tables = clean(read_raw_interactions(spec, data_dir), raw_items, spec.config().cleaning)
    return tables, raw_items


def test_movielens_counts(shared_data: Path) -> None:
    """The 5-core of 100,000 ratings has 943 users and 1,349 movies; 1,746 item rows describe 1,682 movies."""
    tables, raw_items = _clean(_spec("movielens-100k", shared_data), shared_data)
    assert raw_items.height == 1746
    assert raw_items["item_id"].n_unique() == 1682
    assert raw_items.filter(pl.col("image_path").is_null())["item_id"].n_unique() == 19
    assert tables.items.height == 1349
    assert tables.interactions["user_id"].n_unique() == 943
    assert tables.interactions.height + (tables.quarantine["table"] == "raw_interactions").sum() == 100_000
    duplicates = tables.quarantine.filter(pl.col("reason") == "duplicate_item")
    assert duplicates.height == 1746 - 1682


def test_movielens_texts_and_checks(shared_data: Path) -> None:
    """The text has title, overview (if there is one) and genres; the tables pass their checks."""
    tables, raw_items = _clean(_spec("movielens-100k", shared_data), shared_data)
    text = dict(zip(raw_items["item_id"], raw_items["text"], strict=True))
    assert text["1"].startswith("Toy Story (1995). Led by Woody, Andy's toys live happily")
    assert text["1"].endswith("Genres: Animation, Children, Comedy.")
    assert text["1349"] == "Mille bolle blu (1993). Genres: Comedy."
    histories = build_histories(tables.interactions, tables.items)
    assert interactions_problems(tables.interactions) == []
    assert items_problems(tables.items, tables.interactions) == []
    assert histories_problems(histories, tables.interactions, tables.items) == []
    toy_story = tables.items.filter(pl.col("item_id") == "1").row(0, named=True)
    assert toy_story["image_path"] == "movielens-100k/posters/1.jpg"
    assert toy_story["num_interactions"] == 452


def test_the_readers_movielens_and_tables_agree(shared_data: Path) -> None:
    """The reader `movielens` gives the same interactions as the mapping of the columns of u.data."""
    mapped = read_raw_interactions(_spec("movielens-100k", shared_data), shared_data)
    source = MovielensSource(reader="movielens", folder="movielens-100k", layout="100k")
    spec = DatasetSpec(name="movielens", title="MovieLens", source=source)
    assert read_raw_interactions(spec, shared_data).equals(mapped)


def test_instruments_counts_and_order(shared_data: Path) -> None:
    """The counts are those of the paper, and each user has the published sequence."""
    spec = _spec("amazon-instruments", shared_data)
    tables, _ = _clean(spec, shared_data)
    histories = build_histories(tables.interactions, tables.items)
    assert (histories.height, tables.items.height, tables.interactions.height) == (17_112, 6_250, 136_226)
    assert tables.quarantine.is_empty()
    assert histories_problems(histories, tables.interactions, tables.items) == []
    folder = shared_data / "amazon-instruments"
    published = read_json_object(folder / "Instruments.inter.json.gz", "Instruments.inter.json.gz")
    users = read_index_map(spec.source, "user2id", shared_data)[1]
    items = read_index_map(spec.source, "item2id", shared_data)[1]
    item_ids = tables.items["item_id"].to_list()
    sequences = {
        user: [item_ids[item] for item in row] for user, row in histories.select("user_id", "item_indices").rows()
    }
    assert sequences == {users[int(user)]: [items[item] for item in row] for user, row in published.items()}


def test_instruments_semantic_ids(shared_data: Path) -> None:
    """Every item has 4 levels of 256 codes; 5,988 text IDs and all image IDs are distinct; rows follow the items."""
    spec = _spec("amazon-instruments", shared_data)
    tables, _ = _clean(spec, shared_data)
    ids = precomputed_semantic_ids(spec, shared_data, tables.items)
    assert ids is not None
    assert ids.codebook_size == 256
    assert ids.text_codes.shape == ids.image_codes.shape == (6250, 4)
    assert len(np.unique(ids.text_codes, axis=0)) == 5988
    assert len(np.unique(ids.image_codes, axis=0)) == 6250
    first = tables.items["item_id"].to_list().index("B002SQJL9U")  # index 0 of the published files
    assert ids.text_codes[first].tolist() == [170, 224, 251, 151]
    assert ids.image_codes[first].tolist() == [154, 106, 221, 144]


def test_beauty_has_the_ids_of_letter_and_the_log_of_s3_rec(shared_data: Path) -> None:
    """Both forms of Amazon Beauty hold the same log; 12,088 of the 12,101 published text IDs are distinct."""
    source = {"reader": "indexed", "folder": "amazon-beauty", "prefix": "Beauty", "text_index": "index.json"}
    spec = DatasetSpec.model_validate({"name": "beauty", "title": "Beauty", "k_core": 5, "source": source})
    if validate_source(spec, shared_data):
        pytest.skip("the real data is missing: amazon-beauty")
    tables, _ = _clean(spec, shared_data)
    assert tables.quarantine.is_empty()
    ids = precomputed_semantic_ids(spec, shared_data, tables.items)
    assert ids is not None
    assert ids.image_codes is None
    assert ids.text_codes is not None
    assert ids.text_codes.shape == (12_101, 4)
    assert len(np.unique(ids.text_codes, axis=0)) == 12_088
    assert ids.codebook_size == 256
    lines = DatasetSpec.model_validate(
        {"name": "lines", "title": "Lines", "source": {"reader": "sequences", "file": "amazon-beauty/Beauty.txt"}}
    )
    from_one = read_raw_interactions(lines, shared_data).select("user_id", "item_id", "timestamp")
    from_zero = tables.interactions.select(
        (pl.col("user_id", "item_id").cast(pl.Int64) + 1).cast(pl.String), "timestamp"
    )
    order = ["user_id", "timestamp"]
    assert from_one.sort(order).equals(from_zero.sort(order))
