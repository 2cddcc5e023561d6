"""An asset trains with torchrun through Dagster Pipes: progress, a killed rank, and an error."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from macrec_pipeline.defs.torchrun_training import LAUNCHER, train_with_torchrun
from macrec_pipeline.errors import MacrecError, StorageError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import FittedRecommender
from macrec_pipeline.torchrun.jobs import recommender_job
from tests.recommender.cyclic_catalogue import CPU, codes, cyclic_histories
from tests.recommender.interrupted_training import saved_files
from tests.torchrun.two_rank_trainings import ITEM_CAUSAL


def train(scratch: Path, *, processes: int, start: Path | None = None) -> tuple[dict[str, bytes], list[int]]:
    """Train within an asset; returns the files of the trained model and the steps that rank 0 reported."""
    config = resolve_config(
        "default",
        {
            "recommender": ITEM_CAUSAL,
            "seed": 5,
            "runtime": {"training_processes": processes, "num_threads": 1, "device": "cpu"},
        },
    )
    job = recommender_job(
        cyclic_histories(15),
        {"text": codes(1), "image": codes(2)},
        codebook_size=4,
        config=config,
        checkpoint=scratch / "checkpoint.safetensors",
        start=start,
    )
    steps: list[int] = []
    files: dict[str, bytes] = {}
    raised: list[MacrecError] = []

    def progress(stage: str, done: int, total: int, metrics: Any) -> None:
        assert (stage, metrics.keys()) == ("recommender", {"train_loss"})
        steps.append(done)

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        asset: Any = SimpleNamespace(config=config, progress=progress)
        try:
            with train_with_torchrun(context, asset, job, scratch) as (folder, result):
                files.update({file.name: file.read_bytes() for file in folder.iterdir()})
                fitted = FittedRecommender.load(folder, device=CPU, warm_start=result.warm_start)
        except MacrecError as error:
            raised.append(error)
            return dg.MaterializeResult()
        assert files == saved_files(fitted, scratch / "again")
        assert fitted.warm_start == "none"
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([trained], instance=instance).success
    if raised:
        raise raised[0]
    return files, steps


@pytest.mark.slow
def test_training_resumes_from_the_checkpoint_after_a_rank_was_killed(
    two_rank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 dies in the second epoch. All ranks repeat that epoch and end with the bytes of an undisturbed run."""
    monkeypatch.setenv(LAUNCHER, shlex.join([sys.executable, "-m", "tests.torchrun.killed_rank"]))
    files, steps = train(tmp_path / "scratch", processes=2)
    assert files == {file.name: file.read_bytes() for file in (two_rank_folder / "item_causal" / "0").iterdir()}
    assert steps == sorted(steps)
    assert sorted((tmp_path / "scratch" / "epochs").read_text().splitlines()) == [
        f"attempt {attempt}, rank {rank}, epoch {epoch}"
        for attempt, rank, epoch in [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    ]
    assert not list((tmp_path / "scratch").glob(".ranks-*"))


@pytest.mark.slow
def test_an_error_of_rank_0_becomes_the_error_of_the_asset(tmp_path: Path) -> None:
    """The starting weights are missing: the asset raises the rank's message, and the ranks are not restarted."""
    with pytest.raises(StorageError, match="training should start from, cannot be read"):
        train(tmp_path / "scratch", processes=1, start=tmp_path / "nothing")
