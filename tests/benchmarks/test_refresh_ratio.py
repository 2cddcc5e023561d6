"""What the measurement of a refresh takes out of a log, and how it reads the program's output."""

from pathlib import Path

import yaml

from benchmarks.refresh_ratio import _ASSET_LINE, split_off_the_newest, write_dataset_file


def test_the_newest_rows_and_the_latest_items_are_new() -> None:
    """Of ten rows the newest two are new, and the item that appears last is new with its rows among them."""
    rows = [["u", item, str(time)] for time, item in enumerate("aabbacbaXc", start=8)]  # times 8 to 17, as numbers
    before, after, new = split_off_the_newest(rows, item_ids=set("abc"), columns=(0, 1, 2), share=0.2)
    assert new == {"c"}
    assert [row[1] for row in before] == list("aabbaba")
    assert [row[1] for row in after] == list("aabbabaXc")  # the row of c at 13 is too old


def test_each_line_of_an_asset_gives_its_seconds() -> None:
    """Other lines of the terminal, such as progress and results, are no assets."""
    printed = "sasrec: 5/40 train_loss=1.2\nsasrec              best of 3 epochs (12.5 s)\nregistered model  x (@a)\n"
    assert _ASSET_LINE.findall(printed) == [("sasrec", "12.5")]


def test_the_demo_becomes_a_data_set_of_tables(tmp_path: Path) -> None:
    """Its files may then differ from what the generator writes, and items without interactions stay."""
    write_dataset_file("demo", tmp_path / "datasets")
    spec = yaml.safe_load((tmp_path / "datasets" / "demo.yaml").read_text(encoding="utf-8"))
    assert spec["source"]["reader"] == "tables"
    assert spec["overrides"]["cleaning"] == {"keep_items_without_interactions": True}
