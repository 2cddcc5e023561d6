"""A training job is written to files and gives the same call again."""

from pathlib import Path

import numpy as np

from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime.progress import quiet_progress
from macrec_pipeline.torchrun.jobs import TrainingJob, recommender_job
from tests.recommender.cyclic_catalogue import CPU, SMALL, codes, cyclic_histories
from tests.recommender.interrupted_training import saved_files


def test_a_refit_is_the_same_through_the_files_of_a_job(tmp_path: Path) -> None:
    """The ranks of `torchrun` train on whole histories for the epochs of the refit, from its starting weights."""
    config = resolve_config("default", {"recommender": SMALL, "seed": 5})
    histories, modalities = cyclic_histories(12), {"text": codes(1), "image": codes(2)}
    start = tmp_path / "start"

    def fit(**arguments: object) -> FittedRecommender:
        return fit_recommender(
            histories,
            modalities["text"],
            modalities["image"],
            codebook_size=4,
            config=config.recommender,
            seed=config.seed,
            device=CPU,
            **arguments,  # type: ignore[arg-type]
        )

    saved_files(fit(), start)
    weights = np.linspace(0.5, 1.5, sum(map(len, histories)), dtype=np.float32)
    job = recommender_job(
        histories,
        modalities,
        codebook_size=4,
        config=config,
        checkpoint=tmp_path / "checkpoint.safetensors",
        start=start,
        refit_epochs=1,
        target_weights=weights,
    )
    job.write(tmp_path)
    fitted = TrainingJob.read(tmp_path).fit(CPU, quiet_progress)
    assert isinstance(fitted, FittedRecommender)
    direct = fit(start=start, refit_epochs=1, target_weights=weights)
    assert saved_files(fitted, tmp_path / "job") == saved_files(direct, tmp_path / "direct")
