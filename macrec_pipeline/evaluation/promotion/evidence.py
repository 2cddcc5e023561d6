"""The evidence for or against replacing the champion, collected over all comparisons with the same champion.

Every run compares a new challenger with the champion. With few test users one comparison decides nothing, but the
challengers of successive runs with the same settings are models of one recipe, so their results are pooled. A test
target is one interaction: user, item and time. It counts once, with the result of the newest challenger that it was
held out from: users without new interactions have the same target again in the next run.

The input is the NDCG@10 of both models per test target of each comparison. The output is `PairedScores`, on which the
rule in `rules` decides, and the files that keep the evidence until the next run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.errors import StorageError
from macrec_pipeline.evaluation.metrics import FloatArray
from macrec_pipeline.runtime.time_units import DAY_MS

WEEK_MS = 7 * DAY_MS
TARGETS_FILE, STATE_FILE = "evidence.parquet", "evidence.json"
_TARGET = ["user_id", "item_id", "timestamp"]
_COLUMNS: dict[str, pl.DataType] = {
    "recipe": pl.String(),  # digest of the settings that the challenger was made with
    "user_id": pl.String(),
    "item_id": pl.String(),
    "timestamp": pl.Int64(),  # of the target, in ms
    "as_of": pl.Int64(),  # newest interaction in the data of the comparison, in ms
    "bundle": pl.String(),  # digest of the challenger
    "challenger": pl.Float64(),  # NDCG@10
    "champion": pl.Float64(),  # NDCG@10
}
_MAX_ORIGINS = 100


@dataclass(frozen=True)
class PairedScores:
    """NDCG@10 of challengers and champion on the same test targets.

    The targets of one user depend on each other, so the variances are computed from the sums per user.

    Attributes:
        challenger, champion: means over the targets.
        variance_challenger, variance_champion, covariance: of the two means; infinite if there is only one user.
        num_targets: number of test targets.
        num_users: number of users that they belong to.
        num_comparisons: number of challengers that they were held out from.
    """

    challenger: float
    champion: float
    variance_challenger: float
    variance_champion: float
    covariance: float
    num_targets: int
    num_users: int
    num_comparisons: int

    @property
    def difference(self) -> float:
        """Challenger minus champion."""
        return self.challenger - self.champion

    def standard_error(self, *, champion_weight: float = 1.0) -> float:
        """Compute the standard error of the mean of (challenger - `champion_weight` * champion)."""
        if self.num_users < 2:
            return float("inf")
        variance = (
            self.variance_challenger
            - 2 * champion_weight * self.covariance
            + champion_weight**2 * self.variance_champion
        )
        return float(np.sqrt(max(variance, 0.0)))

    def figures(self) -> dict[str, float]:
        """Flatten the means and sizes to `pooled.<name>` -> number, for tags and metrics."""
        names = ("challenger", "champion", "difference", "num_targets", "num_users", "num_comparisons")
        return {f"pooled.{name}": getattr(self, name) for name in names}


def paired_scores(
    challenger: FloatArray, champion: FloatArray, *, users: NDArray[np.int64] | None = None, num_comparisons: int = 1
) -> PairedScores:
    """Summarize the scores of both models.

    Args:
        challenger, champion: float64 [targets], NDCG@10 of each target.
        users: int64 [targets], a number per user, counted from 0; None if every target has its own user.
        num_comparisons: see `PairedScores`.
    """
    both = np.stack([challenger, champion], axis=1)
    if users is None:
        return scores_of_users(np.ones(len(both), dtype=np.int64), both, num_comparisons=num_comparisons)
    sums: FloatArray = np.stack([np.bincount(users, weights=column) for column in both.T], axis=1)
    return scores_of_users(np.bincount(users), sums, num_comparisons=num_comparisons)


def scores_of_users(num_targets: NDArray[np.int64], sums: FloatArray, *, num_comparisons: int) -> PairedScores:
    """Summarize the scores of both models from their sums per user.

    Args:
        num_targets: int64 [U], the targets of each user.
        sums: float64 [U, 2], the NDCG@10 of challenger and champion, summed over the user's targets.
        num_comparisons: see `PairedScores`.
    """
    total, num_users = int(num_targets.sum()), int(np.count_nonzero(num_targets))
    means = sums.sum(axis=0) / total
    residuals = sums - num_targets[:, None] * means
    if num_users > 1:
        variances = residuals.T @ residuals * (num_users / (num_users - 1) / total**2)
    else:
        variances = np.full((2, 2), np.inf)
    return PairedScores(
        challenger=float(means[0]),
        champion=float(means[1]),
        variance_challenger=float(variances[0, 0]),
        variance_champion=float(variances[1, 1]),
        covariance=float(variances[0, 1]),
        num_targets=total,
        num_users=num_users,
        num_comparisons=num_comparisons,
    )


@dataclass(frozen=True)
class ChampionAge:
    """How far the champion is behind today's data.

    Attributes:
        weeks: from the newest interaction in the champion's data to the newest one today.
        unknown_items: share of the items of today's catalogue that the champion does not know.
        unknown_targets: share of the newest test targets that the champion does not know.
    """

    weeks: float
    unknown_items: float
    unknown_targets: float

    def figures(self) -> dict[str, float]:
        """Name what `ModelMetrics` does not have yet, for tags and metrics."""
        return {"champion.weeks": self.weeks, "champion.unknown_items": self.unknown_items}


@dataclass(frozen=True)
class Evidence:
    """The comparisons with one champion.

    Attributes:
        champion: digest of the champion's bundle; None before the first comparison.
        targets: one row per recipe and test target; the comments in this module describe the columns.
        origins: digest of a bundle -> newest interaction in the data that it was made from, in ms.
    """

    champion: str | None = None
    targets: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_COLUMNS))
    origins: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read the evidence that `save` wrote; there is none in the folder of an earlier version.

        Raises:
            StorageError: a file cannot be read.
        """
        path, state = folder / TARGETS_FILE, folder / STATE_FILE
        if not state.is_file():
            return cls()
        try:
            content = json.loads(state.read_text(encoding="utf-8"))
            targets = pl.read_parquet(path, glob=False).select(
                pl.col(name).cast(dtype) for name, dtype in _COLUMNS.items()
            )
            return cls(
                content["champion"], targets, {str(key): int(value) for key, value in content["origins"].items()}
            )
        except (OSError, ValueError, KeyError, AttributeError, pl.exceptions.PolarsError) as error:
            raise StorageError(f"{path} and {state.name} do not hold the evidence on the champion: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the evidence to a folder; the same evidence gives the same bytes."""
        content = {"champion": self.champion, "origins": dict(self.origins)}
        (folder / STATE_FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        self.targets.sort("recipe", *_TARGET).write_parquet(folder / TARGETS_FILE)

    def with_origin(self, bundle: str, as_of: int) -> Evidence:
        """Remember how new the data is that a bundle was made from.

        A bundle that is known already keeps its time. The oldest bundles are forgotten, except for the champion.
        """
        newest = sorted({bundle: as_of, **self.origins}.items(), key=lambda entry: (entry[1], entry[0]))
        kept = [entry for entry in newest[:-_MAX_ORIGINS] if entry[0] == self.champion] + newest[-_MAX_ORIGINS:]
        return Evidence(self.champion, self.targets, dict(kept))

    def with_comparison(
        self,
        *,
        champion: str,
        challenger: str,
        recipe: str,
        as_of: int,
        targets: pl.DataFrame,
        challenger_ndcg: FloatArray,
        champion_ndcg: FloatArray,
        max_weeks: int,
    ) -> Evidence:
        """Add a comparison. If another champion was compared before, the earlier evidence is dropped.

        Args:
            champion, challenger: digests of the bundles.
            recipe: digest of the settings that the challenger was made with.
            as_of: newest interaction in the data, in ms.
            targets: the columns user_id, item_id and timestamp of each test target.
            challenger_ndcg, champion_ndcg: float64 [targets], NDCG@10 of each target.
            max_weeks: comparisons on data that is older than this are dropped.
        """
        added = targets.select(
            pl.lit(recipe).alias("recipe"),
            *_TARGET,
            pl.lit(as_of, dtype=pl.Int64).alias("as_of"),
            pl.lit(challenger).alias("bundle"),
            pl.Series("challenger", challenger_ndcg, dtype=pl.Float64),
            pl.Series("champion", champion_ndcg, dtype=pl.Float64),
        )
        earlier = self.targets if champion == self.champion else self.targets.clear()
        earlier = earlier.filter(pl.col("as_of") >= as_of - max_weeks * WEEK_MS)
        earlier = earlier.join(added, on=["recipe", *_TARGET], how="anti")
        evidence = Evidence(champion, pl.concat([earlier, added]).sort("recipe", *_TARGET), self.origins)
        return evidence.with_origin(challenger, as_of).with_origin(champion, as_of)

    def pooled(self, recipe: str) -> PairedScores:
        """Summarize the targets of all challengers of a recipe; there must be at least one."""
        rows = self.targets.filter(pl.col("recipe") == recipe)
        return paired_scores(
            rows["challenger"].to_numpy(),
            rows["champion"].to_numpy(),
            users=rows["user_id"].rank("dense").cast(pl.Int64).to_numpy() - 1,
            num_comparisons=rows["bundle"].n_unique(),
        )

    def champion_weeks(self, as_of: int) -> float:
        """Compute the age of the champion in weeks of the log; see `ChampionAge`."""
        return max(0, as_of - self.origins.get(self.champion or "", as_of)) / WEEK_MS
