"""Simulate a year of weekly runs on a shop that changes, and measure whether the pipeline can be left alone.

    python -m benchmarks.year --weeks 52 --folder FOLDER

Question: does the scheduled pipeline run week after week without a person, and is what it recommends still good?

The shop is `macrec_pipeline/data/demo/changing_shop.py`. Each week brings a delivery (log and catalogue). The jobs that
schedules launch then run one after another: `refresh` (in week 0 `full_pipeline`), which also promotes the new model if
the rules permit it and otherwise refits the champion, `batch_recommendations` and `prune`. A damaged delivery is
refreshed from too, which should be refused, and replaced the next day. In one week the processes of the refresh are
killed while they train, and the refresh is resumed. Every few weeks, the home is copied and `full_pipeline` trains
everything from scratch in the copy, for comparison.

What was recommended in a week is compared with what the shop's users chose in the next one. A user counts if the log
knew the user and the user chose at least one item that was sold when the recommendations were made; NDCG@10 has all of
those items as relevant. item-kNN and popularity are computed from the whole log of the week, and recommend from the
same catalogue, without items that the user has had, as the model does.

FOLDER holds the state (data, home) and the results: `weeks.jsonl` with one line per finished week, `year.md`,
`year.csv` and `year.png`. Run the same command again to continue after an interruption; a larger `--weeks` adds weeks.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.demo.changing_shop import ChangingShop, ShopPlan

if TYPE_CHECKING:
    from macrec_pipeline.recommender import BundleContents

WEEKS = 52
CUTOFF = 10
KILLED_WEEK = 7
"""The week in which the refresh is killed and resumed."""
_KILL_SECONDS = 600.0
SMALL = ShopPlan(
    num_items=100, num_users=120, num_kinds=7, num_styles=4, new_items=3, leaving_items=3, new_users=2, weeks_before=20
)
"""A shop for tests, with about a third of the interactions."""
_NAME = "changing-shop"
_SPEC = """# Written by benchmarks/year.py
name: {name}
title: A shop that changes every week
preset: demo
k_core: 1
source:
  reader: tables
  interactions: {{file: log.csv, user_id: user_id, item_id: item_id, timestamp: time, timestamp_unit: iso}}
  items: {{file: items.csv, item_id: item_id, title: title, texts: [description], image: "images/{{item_id}}.jpg"}}
retention: {{versions: 4, previous_champions: 2, mlflow_runs: 8, dagster_runs: 16}}
schedule: {{job: refresh}}
overrides:
  runtime: {{num_threads: 1}}
  cleaning: {{keep_items_without_interactions: true}}
  pseudo_labels: {{num_clusters: 16}}
  quantizer: {{num_epochs: 60, codebook_size: 16}}
  sasrec: {{max_epochs: 10, d_model: 32}}
  recommender:
    {{num_epochs: 5, d_model: 48, d_ff: 128, num_heads: 3, history_length: 10, tasks: [text_to_text, image_to_image]}}
  decoding: {{beam_width: 20, fusion: calibrated, collaborative_route: true}}
  evaluation: {{bootstrap_samples: 200}}
  promotion: {{automatic: true}}
  recommendations: {{top_k: {cutoff}, exclude_seen: true}}
"""


@dataclass(frozen=True)
class Week:
    """What happened in one week of the simulation.

    Attributes:
        week: its number, from 0.
        delivery: "as usual", "no interactions", "refresh killed" or how the first delivery was damaged.
        stops: runs that failed although their delivery was in order.
        refused: refreshes of a damaged delivery that stopped, as they should.
        errors: the messages of failed runs.
        rows: interactions of this week.
        sold: items in the catalogue of this week.
        not_sold: recommended items that are not in the newest catalogue that was delivered, counted per user.
        users, without_row: users of the log, and how many of them have no recommendations.
        moved_ids: items whose semantic ID differs from the last one that they had, in the table of the home or in the
            served model.
        too_short: interactions of this week that cleaning left out because their user has fewer than three.
        learnt: share of this week's other interactions that the served model was trained on; None if there were none.
        served, registered: the version that recommended, and the newest version.
        decision: why the newest version was promoted or refused.
        seconds: seconds of each job.
        home_bytes: size of the home after `prune`.
        ndcg: system -> NDCG@10 against the next week's choices; a system that was not measured this week is missing.
        num_judged: users whose next choices count.
    """

    week: int
    delivery: str
    stops: int
    refused: int
    errors: tuple[str, ...]
    rows: int
    sold: int
    not_sold: int
    users: int
    without_row: int
    moved_ids: int
    too_short: int
    learnt: float | None
    served: str
    registered: str
    decision: str
    seconds: dict[str, float]
    home_bytes: int
    ndcg: dict[str, float]
    num_judged: int


def run_year(
    folder: Path, *, num_weeks: int, plan: ShopPlan, retrain_every: int, killed_week: int | None = KILLED_WEEK
) -> list[Week]:
    """Run the weeks that are not finished yet, and return all of them.

    Args:
        folder: the folder of the state and the results.
        num_weeks: the number of weeks, from 0.
        plan: the shop.
        retrain_every: weeks between two trainings from scratch, for comparison, of which the first is not in week 0,
            because that week trains from scratch anyway; 0 for none.
        killed_week: the week in which the refresh is killed and resumed; None for none.
    """
    shop = ChangingShop(plan, num_weeks=num_weeks + 1)  # the choices of the week after the last one are compared
    simulation = _Simulation(folder, shop, retrain_every=retrain_every, killed_week=killed_week)
    record = folder / "weeks.jsonl"
    weeks = read_weeks(record)
    for week in range(len(weeks), num_weeks):
        weeks.append(simulation.run(week))
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(weeks[-1])) + "\n")
        print(_row_text(weeks[-1]), flush=True)
    return weeks


def read_weeks(record: Path) -> list[Week]:
    """Read the finished weeks of an earlier run; an unfinished last line counts as none."""
    if not record.exists():
        return []
    lines = record.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]
    if lines[-1]:  # the process was killed while it wrote
        record.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return [Week(**json.loads(line)) for line in whole]


class _Simulation:
    """Delivers a week to the pipeline, launches its jobs and measures what they did."""

    def __init__(self, folder: Path, shop: ChangingShop, *, retrain_every: int, killed_week: int | None) -> None:
        from macrec_pipeline.storage import AssetStore

        self.shop, self.retrain_every, self.killed_week = shop, retrain_every, killed_week
        self.folder, self.home, self.data = folder, folder / "home", folder / "data"
        self.known_ids_file = folder / "ids.json"
        self.store = AssetStore(self.home, _NAME)

    def run(self, week: int) -> Week:
        """Run one week and measure it."""
        errors: list[str] = []
        seconds: dict[str, float] = {}
        refused = 0
        first = not self.store.has("registered_model")
        damage = dict(self.shop.plan.damaged).get(week)
        if damage:
            self.shop.write(week, self.data, damage=damage)
            refused += self._launch("refresh", seconds, []) is not None
            self._launch("batch_recommendations", {}, [])
        if week == 0 or week not in self.shop.plan.empty_weeks:
            self.shop.write(week, self.data)
        stops = 0
        is_killed = week == self.killed_week and not first
        if is_killed:
            self._kill_refresh()
        for job in ("full_pipeline" if first else "refresh", "batch_recommendations", "prune"):
            stops += self._launch(job, seconds, errors, resume=is_killed and job == "refresh") is not None
        recommended = self._recommendations(self.home)
        sold = self.shop.sold_in(week)
        is_delivered = week == 0 or week not in self.shop.plan.empty_weeks
        delivered = sold if is_delivered else self.shop.sold_in(week - 1)
        ndcg, num_judged = self._judge(week, recommended)
        registration = json.loads((self.store.folder("registered_model") / "registration.json").read_text("utf-8"))
        log = self.shop.log(week)
        rows = log.filter(pl.col("week") == week)
        quarantine = self.store.read_table("quarantine").filter(pl.col("reason") == "too_short")
        to_learn = rows.join(quarantine, on=["user_id", "item_id"], how="anti")
        served = recommended["model"][0]
        if self.retrain_every and week and week % self.retrain_every == 0 and num_judged:
            ndcg["full retrain"] = self._judge_full_retrain(week, seconds)
        return Week(
            week,
            damage or ("no interactions" if rows.is_empty() else "refresh killed" if is_killed else "as usual"),
            stops,
            refused,
            tuple(errors),
            rows.height,
            len(sold),
            int((~recommended["item_ids"].explode().is_in(list(delivered))).sum()),
            log["user_id"].n_unique(),
            len(set(log["user_id"]) - set(recommended["user_id"])),
            self._count_moved_ids(served),
            rows.height - to_learn.height,
            self._learnt_share(to_learn, served),
            served,
            registration["uri"],
            registration.get("champion_decision", registration.get("decision", "")),
            seconds,
            _size_of(self.home),
            ndcg,
            num_judged,
        )

    def _launch(
        self,
        job: str,
        seconds: dict[str, float],
        errors: list[str],
        *,
        home: Path | None = None,
        overrides: Sequence[str] = (),
        resume: bool = False,
    ) -> str | None:
        """Launch a job and return None, or the message of its error; also add it to `errors`."""
        from macrec_pipeline.definitions import defs
        from macrec_pipeline.defs.runs.launch import LaunchRequest, launch

        started = time.perf_counter()
        try:
            request = LaunchRequest(_NAME, home or self.home, self.data, tuple(overrides), job=job, resume=resume)
            launch(request, defs=defs)
        except Exception as error:  # whatever stops a run is what is counted
            errors.append(f"{job}: {type(error).__name__}: {error}")
            return errors[-1]
        finally:
            seconds[job] = round(seconds.get(job, 0.0) + time.perf_counter() - started, 1)
        return None

    def _kill_refresh(self) -> None:
        """Start a refresh as a command, and kill all of its processes once it trains the recommender."""
        command = [sys.executable, "-m", "macrec_pipeline.cli", "refresh", _NAME]
        command += ["--home", str(self.home), "--data", str(self.data)]
        scratch, log = self.home / _NAME / ".scratch" / "recommender", self.folder / "killed.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            deadline = time.monotonic() + _KILL_SECONDS
            while not scratch.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            running = process.poll() is None and scratch.exists()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not running:
            raise RuntimeError(f"The refresh was not killed in the middle of its training: see {log}.")

    def _recommendations(self, home: Path) -> pl.DataFrame:
        return pl.read_parquet(home / _NAME / "recommendations" / "part-*.parquet")

    def _judge_full_retrain(self, week: int, seconds: dict[str, float]) -> float:
        """NDCG@10 of a model that is trained from scratch in a copy of the home."""
        # A path of its own per week: MLflow keeps connections to the databases that a process has opened, by path.
        copy = self.folder / f"copy-{week}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.home, copy, symlinks=True)
        errors: list[str] = []
        spent: dict[str, float] = {}
        self._launch("full_pipeline", spent, errors, home=copy)
        self._launch("batch_recommendations", spent, errors, home=copy, overrides=("recommendations.model=challenger",))
        if errors:
            raise RuntimeError(f"The comparison with a full retrain failed: {'; '.join(errors)}")
        seconds["full retrain"] = spent["full_pipeline"]
        ndcg, _ = self._judge(week, self._recommendations(copy), with_baselines=False)
        shutil.rmtree(copy)
        return ndcg["served model"]

    def _judge(
        self, week: int, recommended: pl.DataFrame, *, with_baselines: bool = True
    ) -> tuple[dict[str, float], int]:
        """NDCG@10 of each system against the choices of the next week, and the number of users that it is over."""
        sold, log = self.shop.sold_in(week), self.shop.log(week)
        known = set(log["user_id"])
        chosen: dict[str, set[str]] = {}
        next_week = self.shop.log(week + 1).filter(pl.col("week") == week + 1)
        for user, item in next_week.select("user_id", "item_id").iter_rows():
            if user in known and item in sold:
                chosen.setdefault(user, set()).add(item)
        if not chosen:
            return {}, 0
        lists = {"served model": dict(recommended.select("user_id", "item_ids").iter_rows())}
        if with_baselines:
            lists |= baseline_lists(log, sold, sorted(chosen))
        return {
            system: float(np.mean([ndcg_at(by_user.get(user, []), chosen[user]) for user in sorted(chosen)]))
            for system, by_user in lists.items()
        }, len(chosen)

    def _served_bundle(self, served: str) -> "BundleContents":
        from macrec_pipeline.recommender import read_contents
        from macrec_pipeline.tracking import open_tracking

        with open_tracking(self.home).bundle(_NAME, int(served.rsplit("/", 1)[-1])) as folder:
            return read_contents(folder)

    def _count_moved_ids(self, served: str) -> int:
        """Count the items whose semantic ID differs from the last one that they had, and remember those of today."""
        known = json.loads(self.known_ids_file.read_text("utf-8")) if self.known_ids_file.exists() else {}
        table = self.store.read_table("semantic_ids").select("item_id", "text_codes", "image_codes")
        today = {item: [text, image] for item, text, image in table.iter_rows()}
        bundle = self._served_bundle(served)
        by_modality = zip(*(bundle.codes[modality].tolist() for modality in ("text", "image")), strict=True)
        in_service = {item: list(codes) for item, codes in zip(bundle.item_ids, by_modality, strict=True)}
        moved = {
            item
            for ids in (today, in_service)
            for item, codes in ids.items()
            if known.get(item, today.get(item, codes)) != codes
        }
        self.known_ids_file.write_text(json.dumps(known | today), encoding="utf-8")
        return len(moved)

    def _learnt_share(self, rows: pl.DataFrame, served: str) -> float | None:
        """Share of interactions of this week that the served model was trained on."""
        if rows.is_empty():
            return None
        made_from = self._served_bundle(served).description["provenance"]
        interactions = self.store.manifest("interactions").digest
        if "refit" not in made_from or made_from["inputs"]["interactions"] != interactions:
            return 0.0  # only a refit to today's interactions has learnt this week
        learnt = set(self.store.read_table("interactions").select("user_id", "item_id").iter_rows())
        return sum(pair in learnt for pair in rows.select("user_id", "item_id").iter_rows()) / rows.height


def baseline_lists(log: pl.DataFrame, sold: set[str], users: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Recommend with item-kNN and popularity from a whole log, in which nothing is held out.

    Args:
        log: the columns `user_id` and `item_id`, in time order.
        sold: the items that may be recommended.
        users: the users to recommend for.

    Returns:
        system -> user -> at most ten items that are sold and that the user has not had, best first.
    """
    from macrec_pipeline.config import EvaluationConfig
    from macrec_pipeline.evaluation.baselines import run_baselines

    names = sorted(set(log["item_id"]) | sold)
    index_of = {name: index for index, name in enumerate(names)}
    histories = dict(log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    order = sorted(histories)
    flat = _everything([[index_of[item] for item in histories[user]] for user in order])
    listed = np.array([name in sold for name in names])
    found = run_baselines(flat, num_items=len(names), top_k=CUTOFF, config=EvaluationConfig(), listed=listed)
    place = {user: row for row, user in enumerate(order)}
    return {
        title: {user: [names[item] for item in found.lists[system, True][place[user]] if item >= 0] for user in users}
        for title, system in (("item-kNN", "item_knn"), ("popularity", "popularity"))
    }


def _everything(histories: Sequence[Sequence[int]]) -> Any:
    """Flatten histories for `run_baselines` so that it counts all of their items and has all of them as input."""
    from macrec_pipeline.evaluation.flat_histories import FlatHistories

    class Everything(FlatHistories):
        def training_part(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            return self.without_last(1)

    with_target = [[*items, 0] for items in histories]  # the last item is the target, which no system sees
    lengths = [len(items) for items in with_target]
    return Everything(
        items=np.concatenate([np.array(items, dtype=np.int64) for items in with_target]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def ndcg_at(recommended: Sequence[str], relevant: set[str], cutoff: int = CUTOFF) -> float:
    """NDCG@cutoff of one list with several relevant items, all equally relevant."""
    discounts = 1.0 / np.log2(np.arange(cutoff) + 2.0)
    hits = np.array([item in relevant for item in recommended[:cutoff]], dtype=np.float64)
    return float((hits * discounts[: len(hits)]).sum() / discounts[: len(relevant)].sum())


def _size_of(folder: Path) -> int:
    """Sum of the sizes of the files below a folder, in bytes; a file with several names counts once."""
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = (Path(parent) / name).lstat()
            files[status.st_ino] = status.st_size
    return sum(files.values())


def _ndcg_text(week: Week, system: str) -> str:
    return f"{week.ndcg[system]:.4f}" if system in week.ndcg else ""


SYSTEMS = ("served model", "full retrain", "item-kNN", "popularity")
_COLUMNS: dict[str, Callable[[Week], str]] = {
    "week": lambda week: str(week.week),
    "delivery": lambda week: week.delivery.replace("_", " "),
    "stops": lambda week: str(week.stops),
    "refused": lambda week: str(week.refused),
    "not sold": lambda week: str(week.not_sold),
    "users without row": lambda week: str(week.without_row),
    "IDs moved": lambda week: str(week.moved_ids),
    "too short": lambda week: str(week.too_short),
    "learnt": lambda week: "" if week.learnt is None else f"{week.learnt:.0%}",
    "served": lambda week: week.served.rsplit("/", 1)[-1],
    "newest": lambda week: week.registered.rsplit("/", 1)[-1],
    "seconds": lambda week: f"{sum(week.seconds.values()) - week.seconds.get('full retrain', 0.0):.0f}",
    "home MB": lambda week: f"{week.home_bytes / 1e6:.1f}",
    **{system: partial(_ndcg_text, system=system) for system in SYSTEMS},
    "users judged": lambda week: str(week.num_judged),
}


def _row_text(week: Week) -> str:
    cells = " | ".join(f"{name} {value(week)}" for name, value in _COLUMNS.items())
    return f"{cells} | {week.decision}" + "".join(f"\n    {error}" for error in week.errors)


def summarize(weeks: Sequence[Week]) -> dict[str, float]:
    """Sum up the year: totals, means over weeks, and each system's mean NDCG@10.

    A system's mean is over the weeks in which it was measured; `served / full retrain` compares the same weeks.
    """
    half = weeks[len(weeks) // 2 :]
    both = [week.ndcg for week in weeks if "full retrain" in week.ndcg]
    summary = {
        "weeks": len(weeks),
        "stops": sum(week.stops for week in weeks),
        "damaged deliveries refused": sum(week.refused for week in weeks),
        "recommended items that are not sold": sum(week.not_sold for week in weeks),
        "users without recommendations": sum(week.without_row for week in weeks),
        "IDs of old items that moved": sum(week.moved_ids for week in weeks),
        "share of the newest week learnt, mean": _mean([week.learnt for week in weeks if week.learnt is not None]),
        "weeks in which the newest challenger was served": sum(week.served == week.registered for week in weeks),
        "MB of the home, middle of the year": half[0].home_bytes / 1e6,
        "MB of the home, end": weeks[-1].home_bytes / 1e6,
    }
    for system in SYSTEMS:
        summary[f"NDCG@10, {system}"] = _mean([week.ndcg[system] for week in weeks if system in week.ndcg])
    if both:
        served, full = (sum(ndcg[system] for ndcg in both) for system in ("served model", "full retrain"))
        summary["served / full retrain, same weeks"] = served / full
    return summary


def write_results(weeks: Sequence[Week], folder: Path, *, command: str) -> None:
    """Write the table as `year.csv` and `year.md`, and the figure as `year.png`."""
    with (folder / "year.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([value(week) for value in _COLUMNS.values()] for week in weeks)
    summary = summarize(weeks)
    lines = ["# A simulated year", "", f"`{command}`", "", "| | |", "|---|---:|"]
    lines += [
        f"| {name} | {value:.4f} |" if value % 1 else f"| {name} | {value:.0f} |" for name, value in summary.items()
    ]
    lines += ["", f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(value(week) for value in _COLUMNS.values())} |" for week in weeks]
    errors = [f"- Week {week.week}: {error}" for week in weeks for error in week.errors]
    lines += ["", *(errors or ["No run stopped."]), ""]
    (folder / "year.md").write_text("\n".join(lines), encoding="utf-8")
    _draw(weeks, folder / "year.png")


def _draw(weeks: Sequence[Week], path: Path) -> None:
    """Draw quality, share learnt, seconds and size by week, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(9, 10), sharex=True, layout="constrained")
    numbers = [week.week for week in weeks]
    for system, colour in zip(SYSTEMS, ("#1f6f8b", "#c8553d", "#6a8d3a", "#4d4d4d"), strict=True):
        points = [(week.week, week.ndcg[system]) for week in weeks if system in week.ndcg]
        if points:
            style = "o" if system == "full retrain" else "-"
            axes[0].plot(*zip(*points, strict=True), style, color=colour, label=system, markersize=4)
    axes[0].set_title("NDCG@10 of the week's recommendations against the next week's choices", loc="left", fontsize=10)
    axes[0].legend(frameon=False, fontsize=8, ncols=4)
    axes[1].plot(numbers, [np.nan if week.learnt is None else 100 * week.learnt for week in weeks], color="#1f6f8b")
    axes[1].set_title("Share of the newest week that the served model has learnt, %", loc="left", fontsize=10)
    for job in ("refresh", "batch_recommendations", "prune"):
        axes[2].plot(numbers, [week.seconds.get(job, np.nan) for week in weeks], label=job)
    axes[2].set_title("Seconds of each job", loc="left", fontsize=10)
    axes[2].legend(frameon=False, fontsize=8, ncols=3)
    axes[3].plot(numbers, [week.home_bytes / 1e6 for week in weeks], color="#1f6f8b")
    axes[3].set_title("Size of the home after prune, MB", loc="left", fontsize=10)
    axes[3].set_xlabel("week")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(color="#e3e3e3")
        for week in weeks:
            if week.delivery != "as usual":
                axis.axvline(week.week, color="#b8860b", linewidth=0.8, linestyle=":")
    summary = summarize(weeks)
    zeros = ("stops", "recommended items that are not sold", "IDs of old items that moved")
    figure.suptitle(
        ", ".join(f"{name}: {summary[name]:.0f}" for name in zeros)
        + "\ndotted: a week without interactions, or with a damaged delivery",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def prepare(folder: Path) -> None:
    """Write the data set's file, and make it the only one that this process knows. Call it before Dagster is loaded."""
    datasets = folder / "datasets"
    datasets.mkdir(parents=True, exist_ok=True)
    (datasets / f"{_NAME}.yaml").write_text(_SPEC.format(name=_NAME, cutoff=CUTOFF), encoding="utf-8")
    os.environ["MACREC_DATASETS"] = str(datasets)
    for name in ("MACREC_HOME", "MACREC_DATA", "DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--weeks", type=int, default=WEEKS, help="number of weeks")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the state and the results")
    parser.add_argument("--small", action="store_true", help="a third of the users and items, as in the tests")
    parser.add_argument("--retrain-every", type=int, default=4, help="weeks between full retrains; 0 for none")
    parser.add_argument("--seed", type=int, default=ShopPlan.seed, help="seed of the shop")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    from macrec_pipeline.terminal import quieten_libraries

    quieten_libraries()
    plan = replace(SMALL if options.small else ShopPlan(), seed=options.seed)
    weeks = run_year(folder, num_weeks=options.weeks, plan=plan, retrain_every=options.retrain_every)
    given = f"--weeks {options.weeks} --retrain-every {options.retrain_every} --seed {options.seed}"
    given += " --small" * options.small
    write_results(weeks, folder, command=f"python -m benchmarks.year {given}")
    print("\n".join(f"{name}: {value:.4g}" for name, value in summarize(weeks).items()))


if __name__ == "__main__":
    main()
