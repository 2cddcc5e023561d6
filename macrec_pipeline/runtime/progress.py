"""How long work reports itself: core code calls a `Progress`, the caller decides where it shows.

`quiet_progress` shows nothing; `terminal_progress` draws a bar; assets combine a bar with metrics for the tracker.
"""

from collections.abc import Mapping
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Receives the state of one stage; called often, so it must be cheap."""

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` steps of `stage` are finished; `metrics` are the newest values, each finite."""


def quiet_progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    """Show nothing."""


class TerminalProgress:
    """One bar a stage on standard error; without a terminal, a line at each quarter."""

    def __init__(self, *, interactive: bool) -> None:
        self._interactive = interactive
        self._stage = ""
        self._bar: tqdm | None = None
        self._quarter = -1

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
        if self._bar is None:
            self._bar = tqdm(total=total, desc=stage, disable=not self._interactive, mininterval=0.2, leave=True)
        if metrics:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False)
        self._bar.update(done - self._bar.n)
        if not self._interactive and total and 4 * done // total > self._quarter:
            self._quarter = 4 * done // total
            values = " ".join(f"{name}={value:.4g}" for name, value in (metrics or {}).items())
            tqdm.write(f"{stage}: {done}/{total} {values}".rstrip())
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the current bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage, self._quarter = None, "", -1
