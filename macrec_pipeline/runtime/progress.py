"""How long-running work reports progress: core code calls a `Progress`, and the caller decides where it is shown.

`quiet_progress` shows nothing and `TerminalProgress` draws a bar; assets combine a bar with metrics for MLflow.
"""

from collections.abc import Mapping
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Receives the state of one stage. It is called often, so it must be cheap."""

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that `done` of `total` steps of `stage` are finished.

        Args:
            stage: name of the work.
            done: finished steps.
            total: all steps.
            metrics: the newest values, each finite.
        """


def quiet_progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    """Show nothing."""


class TerminalProgress:
    """Draws one bar per stage on standard error; without a terminal, writes a line at each quarter."""

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
        """Close the current bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage, self._quarter = None, "", -1
