"""Which epoch's weights are kept: the lowest collision rate, of each modality or of both together.

In: the collision rates of each measurement. Out: which modalities' weights are now the ones to keep.
"""

from __future__ import annotations

from collections.abc import Mapping


class EpochChoice:
    """The best epoch so far; of equal rates the later one, which reconstructs better.

    Args:
        criterion: per_modality: each modality by its own rate; joint: all by the mean of the rates.

    Attributes:
        epochs: {modality: best epoch}.
    """

    def __init__(self, criterion: str) -> None:
        self.joint = criterion == "joint"
        self.epochs: dict[str, int] = {}
        self._rates: dict[str, float] = {}

    def offer(self, epoch: int, rates: Mapping[str, float]) -> list[str]:
        """Take in the collision rates of `epoch`; the modalities for which it is the best so far."""
        if self.joint:
            # rounded, so that equal means tie whatever they are the sums of
            rates = dict.fromkeys(rates, round(sum(rates.values()) / len(rates), 12))
        better = [name for name, rate in rates.items() if rate <= self._rates.get(name, float("inf"))]
        for name in better:
            self._rates[name], self.epochs[name] = rates[name], epoch
        return better
