"""Interrupts trainings, and compares the files that they save."""

from collections.abc import Callable
from pathlib import Path

from macrec_pipeline.recommender import FittedRecommender, FittedSasrec


class InterruptedTrainingError(Exception):
    """Stands for a process that is killed."""


def interrupt_after(share: float) -> Callable[..., None]:
    """Return a progress callback that raises `InterruptedTrainingError` after a share of all steps."""

    def progress(_stage: str, done: int, total: int, *_: object) -> None:
        if done > share * total:
            raise InterruptedTrainingError

    return progress


def saved_files(fitted: FittedRecommender | FittedSasrec, folder: Path) -> dict[str, bytes]:
    """Save a fitted model and return the contents of its files by name."""
    folder.mkdir(parents=True)
    fitted.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}
