"""Runs `macrec run` and is killed once in every asset; resumes each time until the run succeeds.

Usage: `python -m tests.faults.killed_everywhere REFERENCE_HOME HOME`. Prints what happened as JSON. The package is
loaded once and each run is a fork of it, as in Dagster's fork server, which makes each run start much faster.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

import macrec_pipeline.definitions  # noqa: F401  (loaded before the forks)
from macrec_pipeline import cli, semantic_ids
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.presentation import AssetProgress
from macrec_pipeline.defs.runs.launch import open_instance
from macrec_pipeline.storage import store

PROGRESS, HALF_WRITTEN, NOT_REPORTED, UNCHECKED = "progress", "half written", "not reported", "unchecked"
# When each asset is killed: after a share of its progress; with its files written but no manifest; with the new version
# in place but neither Dagster nor MLflow informed; or before the blocking check of the finished asset.
KILLS: dict[str, tuple[str, float]] = {
    "raw_interactions": (HALF_WRITTEN, 0),
    "raw_items": (NOT_REPORTED, 0),
    "items": (NOT_REPORTED, 0),
    "histories": (HALF_WRITTEN, 0),
    "text_embeddings": (HALF_WRITTEN, 0),
    "image_embeddings": (NOT_REPORTED, 0),
    "sasrec": (PROGRESS, 0.75),
    "pseudo_labels": (HALF_WRITTEN, 0),
    "quantizer": (PROGRESS, 0.5),
    "semantic_ids": (UNCHECKED, 0),
    "recommender": (PROGRESS, 0.75),
    "predictions": (NOT_REPORTED, 0),
    "evaluation_report": (HALF_WRITTEN, 0),
    "refitted_recommender": (HALF_WRITTEN, 0),
    "champion_refit": (HALF_WRITTEN, 0),
    "registered_model": (HALF_WRITTEN, 0),  # MLflow already has the model version
}


def main(reference: Path, home: Path) -> None:
    """Run once without a kill, then resume a killed run again and again until it succeeds."""
    assert _forked(reference, lambda: _run(reference, [], resume=False)) == 0, _output(reference)
    killed: list[str] = []
    while len(killed) <= len(KILLS):
        status = _forked(home, lambda: _run(home, killed, resume=bool(killed)))
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"after {killed}: {status}: {_output(home)}"
        killed.append((home / "killed").read_text())
    _forked(home, lambda: _report(home, killed))
    print((home / "report.json").read_text())


def _run(home: Path, already_killed: list[str], *, resume: bool) -> None:
    os.environ["MACREC_HOME"] = str(home)
    with (home / "first_steps.jsonl").open("a", buffering=1) as steps:
        if home.name != "reference":
            _install_kills(home, [name for name in KILLS if name not in already_killed], steps)
        cli.main(["run", "tiny", *(["--resume"] if resume else [])])


def _install_kills(home: Path, targets: list[str], steps: Any) -> None:
    """Make the process kill itself in the first of the target assets that it reaches."""

    def die(asset: str, moment: str, share: float = 0) -> None:
        if asset in targets and KILLS[asset][0] == moment and share >= KILLS[asset][1]:
            (home / "killed").write_text(asset)
            os.kill(os.getpid(), signal.SIGKILL)

    seal, report, show_progress, find_problems = (
        store.seal,
        AssetContext.report,
        AssetProgress.__call__,
        semantic_ids.semantic_id_problems,
    )
    started: set[str] = set()

    def seal_or_die(folder: Path, asset: str, details: Any) -> Any:
        die(asset, HALF_WRITTEN)
        return seal(folder, asset, details)

    def report_or_die(asset: AssetContext, **arguments: Any) -> Any:
        die(asset.name, NOT_REPORTED)
        return report(asset, **arguments)

    def show_or_die(self: AssetProgress, stage: str, done: int, total: int, metrics: Any = None) -> None:
        if stage not in started:
            started.add(stage)
            steps.write(json.dumps([stage, done, total]) + "\n")
        show_progress(self, stage, done, total, metrics)
        die(stage, PROGRESS, done / max(1, total))

    def check_or_die(table: Any) -> Any:
        die("semantic_ids", UNCHECKED)
        return find_problems(table)

    store.seal, AssetContext.report, AssetProgress.__call__ = seal_or_die, report_or_die, show_or_die  # type: ignore[method-assign]
    semantic_ids.semantic_id_problems = check_or_die


def _report(home: Path, killed: list[str]) -> None:
    runs = []
    with open_instance(home) as instance:
        for run in instance.get_runs(ascending=True):
            events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            materialized = [
                event.asset_key.to_user_string() for entry in events if (event := entry.get_dagster_event())
            ]
            lineage = [run.tags.get(f"dagster/{which}_run_id") for which in ("parent", "root")]
            runs.append(
                {"id": run.run_id, "status": run.status.value, "materialized": materialized, "lineage": lineage}
            )
    steps = [json.loads(line) for line in (home / "first_steps.jsonl").read_text().splitlines()]
    (home / "report.json").write_text(json.dumps({"killed": killed, "runs": runs, "first_steps": steps}))


def _forked(home: Path, function: Callable[[], None]) -> int:
    """Call a function in a child process whose output goes to a file in the home.

    Returns:
        The exit status, or minus the signal that ended the child.
    """
    home.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        output = os.open(home / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        function()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _output(home: Path) -> str:
    return (home / "output").read_text()[-3000:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
