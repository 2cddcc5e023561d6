"""Measure how fast the published file formats are read, and how much memory that takes.

    python benchmarks/reading.py [ROWS]

Generates a rating log (amazon2018), reviews (amazon2023) and a catalogue with a fifth as many rows in a temporary
folder, and reads each in its own process. Prints rows per second, the size of the table, and how far the peak memory of
the process rises above what it was before reading.
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
_PARTS = ("ratings of 2018", "reviews of 2023", "catalogue of 2023")


def _ratings(num_rows: int, random: Random) -> Iterator[str]:
    for _ in range(num_rows):
        user, item = random.randrange(num_rows // 8 + 1), random.randrange(num_rows // 20 + 1)
        yield f"B{item:09d},A{user:013d},{random.randrange(1, 6)}.0,{1_400_000_000 + random.randrange(10**8)}\n"


def _reviews(num_rows: int, random: Random) -> Iterator[str]:
    for _ in range(num_rows):
        user, item = random.randrange(num_rows // 8 + 1), random.randrange(num_rows // 20 + 1)
        review = {"rating": 5.0, "title": "Great", "text": _WORDS, "asin": "B", "parent_asin": f"B{item:09d}"}
        time_ms = 1_588_687_728_923 + random.randrange(10**10)
        yield json.dumps({**review, "user_id": f"A{user:027d}", "timestamp": time_ms, "helpful_vote": 0}) + "\n"


def _catalogue(num_rows: int) -> Iterator[str]:
    image = {"large": "https://example.com/a.jpg", "hi_res": None, "variant": "MAIN"}
    for item in range(num_rows):
        texts = {"title": f"Item &amp; {item}", "features": [_WORDS[:80]] * 4, "description": [_WORDS]}
        yield json.dumps({"parent_asin": f"B{item:09d}", **texts, "images": [image], "price": 1.0}) + "\n"


def _write(folder: Path, num_rows: int) -> None:
    random = Random(1)
    with (folder / "X.csv").open("w") as file:  # a child process inherits this peak memory, so lines are streamed
        file.writelines(_ratings(num_rows, random))
    for name, lines in (("X.jsonl.gz", _reviews(num_rows, random)), ("meta_X.jsonl.gz", _catalogue(num_rows // 5))):
        with gzip.open(folder / name, "wt", compresslevel=1) as file:
            file.writelines(lines)


def _measure_reading(part: str, data_dir: Path) -> None:
    from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
    from macrec_pipeline.datasets import DatasetSpec

    reader = "amazon2018" if part == "ratings of 2018" else "amazon2023"
    source = {"reader": reader, "folder": "shop", "prefix": "X"}
    spec = DatasetSpec.model_validate({"name": "shop", "title": "Reading benchmark", "source": source})
    peak_before, start = _peak_mib(), time.perf_counter()
    read = read_raw_items if part == "catalogue of 2023" else read_raw_interactions
    table = read(spec, data_dir)
    seconds = time.perf_counter() - start
    print(
        f"{part}: {table.height:,} rows in {seconds:.1f} s, {table.height / seconds:,.0f} rows/s; "
        f"table {table.estimated_size() / 2**20:,.0f} MiB, peak {_peak_mib() - peak_before:,.0f} MiB"
    )


def _peak_mib() -> float:
    """Return the peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write the files, then start a child process for each, which reads it and prints a line."""
    if sys.argv[1:2] == ["--read"]:
        _measure_reading(sys.argv[2], Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop").mkdir()
        _write(Path(folder) / "shop", int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
        for part in _PARTS:
            subprocess.run([sys.executable, __file__, "--read", part, folder], check=True)


if __name__ == "__main__":
    main()
