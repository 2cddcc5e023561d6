"""A shard task that worker processes can import: it writes files, and dies, fails or waits where a test wants it to."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.runtime.sharding.shards import Shard, ShardTask


@dataclass(frozen=True)
class Squares:
    """Loads a task that writes one file per shard with the square of each row, and keeps a log of what it does.

    Attributes:
        folder: the folder for the files and the log.
        dies_at: number of the shard on which workers die, as if the kernel had killed them.
        deaths: how many of them die.
        fails_at: number of the shard that raises an error.
        failure: "disk" for a temporary error of the disk, "bug" for an unexpected exception.
        waits_at: number of the shard that does not finish in the time of a test.
    """

    folder: Path
    dies_at: int = -1
    deaths: int = 0
    fails_at: int = -1
    failure: str = "disk"
    waits_at: int = -1

    def __call__(self, device: torch.device) -> ShardTask:
        self.log(f"load {os.getpid()} {device} {torch.get_num_threads()}")
        return self.compute

    def compute(self, shard: Shard) -> None:
        self.log(f"begin {os.getpid()} {shard.number}")
        if shard.number == self.dies_at and len(self.logged("died")) < self.deaths:
            self.log(f"died {shard.number}")
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.number == self.fails_at:
            self.fail()
        if shard.number == self.waits_at:
            time.sleep(60)
        rows = range(shard.first, shard.first + shard.count)
        (self.folder / f"{shard.number}.txt").write_text(" ".join(str(row * row) for row in rows))
        self.log(f"finished {shard.number}")

    def fail(self) -> None:
        if self.failure == "disk":
            try:
                raise OSError(5, "Input/output error")
            except OSError as error:
                raise StorageError("The disk is not available.") from error
        raise ZeroDivisionError("a bug")

    def log(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(line + "\n")

    def logged(self, event: str) -> list[str]:
        """Return what follows the event in each of its log lines."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.removeprefix(event).strip() for line in lines if line.startswith(event)]
