"""Measure what a refresh costs, compared with a full run on the same data.

    python -m benchmarks.refresh_ratio demo
    python -m benchmarks.refresh_ratio movielens-100k --data ../shared/data --set recommender.num_epochs=30

Takes away the newest 1% of the interactions and 1% of the items, runs `macrec run` on the rest, adds them again and
runs `macrec refresh`. Then it runs `macrec run` on the same complete data in another home. The items are those that
appear last; their interactions before the newest 1%, if there are any, are left out of both logs. Items with too few
interactions stay in the catalogue (`cleaning.keep_items_without_interactions`). Prints the seconds of each asset, the
ratio of the wall times and of the processor times, and
NDCG@10 with its interval. On a busy machine only the ratio of the processor times means something.
"""

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import yaml

from macrec_pipeline.data.demo.ensure import ensure_demo
from macrec_pipeline.datasets import DemoSource

NEW_SHARE = 0.01
_ASSET_LINE = re.compile(r"^(\w+) +.* \((\d+\.\d) s\)$", re.MULTILINE)
_CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LogFormat:
    """Where the log and the catalogue of a data set are, and their columns.

    Attributes:
        folder: below the data folder.
        log, catalogue: files in the folder. Everything else in it is used as it is.
        delimiter: of the log.
        has_header: whether the first line of the log names its columns.
        columns: numbers of the user, the item and the time in the log.
        item_column: number of the item's ID in the catalogue, which is a CSV file with a header.
    """

    folder: str
    log: str
    catalogue: str
    delimiter: str
    has_header: bool
    columns: tuple[int, int, int]
    item_column: int = 0


FORMATS = {
    "demo": LogFormat("demo", "interactions.csv", "items.csv", ",", True, (0, 1, 2)),
    "movielens-100k": LogFormat("movielens-100k", "u.data", "items.csv", "\t", False, (0, 1, 3)),
}


@dataclass(frozen=True)
class Measured:
    """One command.

    Attributes:
        wall, processor: seconds.
        seconds: asset -> seconds, as the command printed them.
        ndcg: NDCG@10 with the ends of its interval.
    """

    wall: float
    processor: float
    seconds: dict[str, float]
    ndcg: tuple[float, float, float]


def split_off_the_newest(
    rows: list[list[str]], *, item_ids: set[str], columns: tuple[int, int, int], share: float
) -> tuple[list[list[str]], list[list[str]], set[str]]:
    """Take the newest interactions and the items that appear last out of a log.

    Args:
        rows: of the log.
        item_ids: the catalogue.
        columns: numbers of the user, the item and the time.
        share: of the interactions, and of the items.

    Returns:
        The log before and after, in the order of `rows`, and the items that are new.
    """
    _, item, moment = columns
    times = [_sortable(row[moment]) for row in rows]
    first_seen: dict[str, tuple[float, str]] = {}
    for row, at in zip(rows, times, strict=True):
        if row[item] in item_ids:
            first_seen[row[item]] = min(first_seen.get(row[item], at), at)
    by_first = sorted(first_seen, key=lambda item_id: (first_seen[item_id], item_id))
    new_items = set(by_first[len(by_first) - round(share * len(by_first)) :])
    newest_first = sorted(range(len(rows)), key=lambda number: times[number], reverse=True)
    newest = set(newest_first[: round(share * len(rows))])
    before = [row for number, row in enumerate(rows) if number not in newest and row[item] not in new_items]
    after = [row for number, row in enumerate(rows) if number in newest or row[item] not in new_items]
    return before, after, new_items


def _sortable(text: str) -> tuple[float, str]:
    """Order numbers as numbers, and dates as texts."""
    return (float(text), "") if text.isdigit() else (0.0, text)


def prepare(dataset: str, source: Path, folder: Path, *, share: float) -> tuple[Path, Path, str]:
    """Write the data before and after the newest interactions; returns both data folders and a line about them."""
    form = FORMATS[dataset]
    data = {name: folder / name for name in ("before", "after")}
    for target in data.values():
        (target / form.folder).mkdir(parents=True)
        for path in (source / form.folder).iterdir():
            if path.name not in (form.log, form.catalogue):
                (target / form.folder / path.name).symlink_to(path.resolve())
    with (source / form.folder / form.log).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter=form.delimiter) if row]
    header, rows = (rows[:1], rows[1:]) if form.has_header else ([], rows)
    with (source / form.folder / form.catalogue).open(newline="", encoding="utf-8") as file:
        items = [row for row in csv.reader(file) if row]
    item_ids = {row[form.item_column] for row in items[1:]}
    kept, rows, new_items = split_off_the_newest(rows, item_ids=item_ids, columns=form.columns, share=share)
    old_items = [row for row in items if row[form.item_column] not in new_items]
    for name, log, catalogue in (("before", kept, old_items), ("after", rows, items)):
        with (data[name] / form.folder / form.log).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=form.delimiter, lineterminator="\n").writerows(header + log)
        with (data[name] / form.folder / form.catalogue).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(catalogue)
    share_of_rows = (len(rows) - len(kept)) / len(rows)
    summary = (
        f"{dataset}: {len(rows):,} interactions, of which {share_of_rows:.1%} are new; {len(items) - 1:,} items, of "
        f"which {(len(items) - len(old_items)) / (len(items) - 1):.1%} are new."
    )
    return data["before"], data["after"], summary


def write_dataset_file(dataset: str, folder: Path) -> None:
    """Write the data set's file; the demo is read as a table, so that its files may change."""
    spec = yaml.safe_load((_CHECKOUT / "datasets" / f"{dataset}.yaml").read_text(encoding="utf-8"))
    if dataset == "demo":
        log = {"file": "demo/interactions.csv", "user_id": "user_id", "item_id": "item_id"}
        catalogue = {"file": "demo/items.csv", "item_id": "item_id", "title": "title", "texts": ["description"]}
        spec["source"] = {
            "reader": "tables",
            "interactions": log | {"timestamp": "event_time", "timestamp_unit": "iso"},
            "items": catalogue | {"image": "demo/pictures/{item_id}.jpg", "categories": "categories"},
        }
    overrides = spec.setdefault("overrides", {})
    overrides["cleaning"] = overrides.get("cleaning", {}) | {"keep_items_without_interactions": True}
    folder.mkdir()
    (folder / f"{dataset}.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")


def measure(command: str, dataset: str, *, data: Path, home: Path, datasets: Path, settings: list[str]) -> Measured:
    """Run `macrec run` or `macrec refresh` in a process of its own."""
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    environment = os.environ | {"MACREC_HOME": str(home), "MACREC_DATASETS": str(datasets), "COLUMNS": "200"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "macrec_pipeline.cli", command, dataset, "--data", str(data), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"macrec {command} failed:\n{process.stdout}\n{process.stderr}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds: dict[str, float] = defaultdict(float)
    for name, value in _ASSET_LINE.findall(process.stdout + "\n" + process.stderr):
        seconds[name] += float(value)
    metrics = json.loads((home / dataset / "evaluation_report" / "metrics.json").read_text(encoding="utf-8"))
    system = metrics["systems"]["macrec"]
    return Measured(wall, processor, dict(seconds), (system["ndcg_10"], *system["ndcg_10_ci"]))


def table(refresh: Measured, full: Measured) -> str:
    """Return the comparison as a Markdown table."""
    lines = ["| asset | refresh, s | full run, s |", "|---|---|---|"]
    for name in full.seconds:
        lines.append(f"| {name} | {refresh.seconds.get(name, 0):.1f} | {full.seconds[name]:.1f} |")
    lines.append(f"| whole command, wall time | {refresh.wall:.1f} | {full.wall:.1f} |")
    lines.append(f"| whole command, processor time | {refresh.processor:.1f} | {full.processor:.1f} |")
    values = ["{:.4f} [{:.4f}, {:.4f}]".format(*each.ndcg) for each in (refresh, full)]
    return "\n".join([*lines, f"| NDCG@10 with 95% interval | {values[0]} | {values[1]} |"])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(FORMATS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data set's files")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of all three commands")
    parser.add_argument("--items", type=int, default=600, help="items of the demo")
    parser.add_argument("--users", type=int, default=1500, help="users of the demo")
    parser.add_argument("--share", type=float, default=NEW_SHARE, help="share of interactions and of items to add")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="refresh-ratio-"))
    try:
        source = options.data
        if options.dataset == "demo":
            source = folder / "generated"
            shop = DemoSource(reader="demo", folder="demo", num_items=options.items, num_users=options.users, seed=7)
            ensure_demo(shop, source)
        before, after, summary = prepare(options.dataset, source, folder, share=options.share)
        write_dataset_file(options.dataset, folder / "datasets")
        print(summary, flush=True)
        common = {"datasets": folder / "datasets", "settings": options.settings}
        earlier = measure("run", options.dataset, data=before, home=folder / "home", **common)
        print(f"first run: {earlier.wall:.1f} s, {earlier.processor:.1f} s of processor time", flush=True)
        refresh = measure("refresh", options.dataset, data=after, home=folder / "home", **common)
        full = measure("run", options.dataset, data=after, home=folder / "other home", **common)
        print(table(refresh, full))
        print(
            f"ratio: {refresh.wall / full.wall:.2f} by wall time, {refresh.processor / full.processor:.2f} by "
            "processor time"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
