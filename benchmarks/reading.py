"""How fast are the published formats read, and in how much memory beside the table that they become?

    python benchmarks/reading.py [ROWS]

Writes a rating log (amazon2018), reviews (amazon2023) and a catalogue a fifth as long, made up, into a temporary
folder; reads each in a process of its own; prints rows a second, the table's size, and the highest memory of the
process above what it began with.
"""

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

_WORDS = "I have been playing for years and this is <br />the best &amp; lightest. " * 5
_READS = ("ratings of 2018", "reviews of 2023", "catalogue of 2023")


def _ratings(num_rows: int, draw: Random) -> Iterator[str]:
    for _ in range(num_rows):
        user, item = draw.randrange(num_rows // 8 + 1), draw.randrange(num_rows // 20 + 1)
        yield f"B{item:09d},A{user:013d},{draw.randrange(1, 6)}.0,{1_400_000_000 + draw.randrange(10**8)}\n"


def _reviews(num_rows: int, draw: Random) -> Iterator[str]:
    for _ in range(num_rows):
        user, item = draw.randrange(num_rows // 8 + 1), draw.randrange(num_rows // 20 + 1)
        review = {"rating": 5.0, "title": "Great", "text": _WORDS, "asin": "B", "parent_asin": f"B{item:09d}"}
        time_ms = 1_588_687_728_923 + draw.randrange(10**10)
        yield json.dumps({**review, "user_id": f"A{user:027d}", "timestamp": time_ms, "helpful_vote": 0}) + "\n"


def _catalogue(num_rows: int) -> Iterator[str]:
    picture = {"large": "https://example.com/a.jpg", "hi_res": None, "variant": "MAIN"}
    for item in range(num_rows):
        texts = {"title": f"Item &amp; {item}", "features": [_WORDS[:80]] * 4, "description": [_WORDS]}
        yield json.dumps({"parent_asin": f"B{item:09d}", **texts, "images": [picture], "price": 1.0}) + "\n"


def _write(folder: Path, num_rows: int) -> None:
    draw = Random(1)
    with (folder / "X.csv").open("w") as file:  # a child begins with its parent's peak, so nothing is gathered here
        file.writelines(_ratings(num_rows, draw))
    for name, lines in (("X.jsonl.gz", _reviews(num_rows, draw)), ("meta_X.jsonl.gz", _catalogue(num_rows // 5))):
        with gzip.open(folder / name, "wt", compresslevel=1) as packed:
            packed.writelines(lines)


def _read(what: str, data_dir: Path) -> None:
    from macrec_pipeline.data.readers.amazon import read_amazon_interactions, read_amazon_items
    from macrec_pipeline.datasets import Amazon2018Source, Amazon2023Source

    of_2018 = Amazon2018Source(reader="amazon2018", folder="shop", prefix="X")
    of_2023 = Amazon2023Source(reader="amazon2023", folder="shop", prefix="X")
    before, begin = _peak(), time.perf_counter()
    if what == "catalogue of 2023":
        table = read_amazon_items(of_2023, data_dir)
    else:
        table = read_amazon_interactions(of_2018 if what == "ratings of 2018" else of_2023, data_dir)
    seconds = time.perf_counter() - begin
    print(
        f"{what}: {table.height:,} rows in {seconds:.1f} s, {table.height / seconds:,.0f} rows/s; "
        f"table {table.estimated_size() / 2**20:,.0f} MiB, peak {_peak() - before:,.0f} MiB"
    )


def _peak() -> float:
    """MiB that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write the files, then read each; a child reads one and prints its line."""
    if sys.argv[1:2] == ["--read"]:
        _read(sys.argv[2], Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop").mkdir()
        _write(Path(folder) / "shop", int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
        for what in _READS:
            subprocess.run([sys.executable, __file__, "--read", what, folder], check=True)


if __name__ == "__main__":
    main()
