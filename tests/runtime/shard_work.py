"""Work that worker processes can import: it writes its rows down, and dies, fails or waits where it is told to."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.runtime.sharding.shards import Make, Shard


@dataclass(frozen=True)
class Squares:
    """A file a shard with the square of each row; `log` says who loaded and made what.

    Attributes:
        dies_at: the shard over which so many workers die, as if the kernel had killed them.
        fails_at, why: the shard that cannot be made, for a "disk" that hiccups or a "fault".
        waits_at: the shard that takes for ever.
    """

    folder: Path
    dies_at: int = -1
    deaths: int = 0
    fails_at: int = -1
    why: str = "disk"
    waits_at: int = -1

    def __call__(self, device: torch.device) -> Make:
        self.note(f"load {os.getpid()} {device} {torch.get_num_threads()}")
        return self.make

    def make(self, shard: Shard) -> None:
        self.note(f"begin {os.getpid()} {shard.number}")
        if shard.number == self.dies_at and len(self.noted("died")) < self.deaths:
            self.note(f"died {shard.number}")
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.number == self.fails_at:
            self.fail()
        if shard.number == self.waits_at:
            time.sleep(60)
        rows = range(shard.first, shard.first + shard.count)
        (self.folder / f"{shard.number}.txt").write_text(" ".join(str(row * row) for row in rows))
        self.note(f"made {shard.number}")

    def fail(self) -> None:
        if self.why == "disk":
            try:
                raise OSError(5, "Input/output error")
            except OSError as error:
                raise StorageError("The disk hiccups.") from error
        raise ZeroDivisionError("a fault of this package")

    def note(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(line + "\n")

    def noted(self, word: str) -> list[str]:
        """What has been noted that begins with a word."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.removeprefix(word).strip() for line in lines if line.startswith(word)]
