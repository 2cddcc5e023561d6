"""How often does a rule of promotion decide rightly and wrongly, for shops with 300, 3,000 and 30,000 test users?

Every week a new challenger is compared with the champion, and a rule decides. The scenarios say how good the
challengers are. Each simulated year starts with a new champion. After a promotion the challenger is the champion, and
the next challengers relate to it as before. The rule of the product is `judge_quality` with its default settings.

NDCG@10 per user comes from ranks: the ranks of both models on one target are drawn from the joint distribution of the
ranks under two real models of one recipe. `RANK_PAIRS` holds it as counted on MovieLens-100K, for every pair of twelve
item-kNN models that were each fitted on a random half of the users, over the users that both models know: 88% of the
targets are missed, NDCG@10 is .064, and its correlation between two models is .73. A worse model loses a random share
of its hits.

Run `python -m benchmarks.promotion_error_rates` (five minutes on one core). It prints the figures of
docs/decisions/028.
Shapes (docs/notation.md): U users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.config import PromotionConfig
from macrec_pipeline.evaluation.metrics import ndcg
from macrec_pipeline.evaluation.promotion.evidence import ChampionAge, PairedScores, paired_scores, scores_of_users
from macrec_pipeline.evaluation.promotion.rules import judge_quality
from macrec_pipeline.evaluation.statistics import paired_rank_differences

WEEKS_PER_YEAR = 50
ACTIVE = 0.3
"""Share of the users with a new test target in a week; the others keep theirs."""
SPREAD = 0.02
"""Standard deviation of the quality of successive challengers, relative to NDCG@10."""
KEPT = 0.85
"""Share of the hits that a model of the reference quality keeps, so that a model can also be better."""
SAME_RESULT = 0.17
"""Share of repeated targets on which a challenger has the rank of the challenger before it. Otherwise its rank depends
on the champion's alone. This share gives the agreement of the twelve models."""
RANK_PAIRS = np.array(
    [
        [26300, 64, 82, 81, 78, 85, 114, 187, 194, 140, 139],
        [64, 424, 85, 62, 47, 21, 16, 6, 14, 12, 4],
        [82, 85, 50, 41, 31, 23, 29, 23, 16, 9, 2],
        [81, 62, 41, 42, 33, 27, 34, 21, 26, 23, 3],
        [78, 47, 31, 33, 26, 30, 26, 23, 18, 18, 5],
        [85, 21, 23, 27, 30, 18, 26, 27, 24, 14, 11],
        [114, 16, 29, 34, 26, 26, 38, 25, 34, 19, 16],
        [187, 6, 23, 21, 23, 27, 25, 20, 28, 26, 14],
        [194, 14, 16, 26, 18, 24, 34, 28, 22, 20, 14],
        [140, 12, 9, 23, 18, 14, 19, 26, 20, 12, 7],
        [139, 4, 2, 3, 5, 11, 16, 14, 14, 7, 6],
    ]
)
"""Users by rank under one model and under the other, 0 for a miss."""
_VALUES = ndcg(np.arange(11), cutoff=10)
Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """How good the challengers are.

    Attributes:
        name: for the table.
        quality: NDCG@10 of the challengers relative to a new champion, on average.
        weekly_loss: share of its NDCG@10 that the champion loses per week, because it does not know new items.
        promotion_is_right: whether promoting is the right decision.
    """

    name: str
    quality: float
    weekly_loss: float
    promotion_is_right: bool


SCENARIOS = (
    Scenario("equal", 1.0, 0.0, True),
    Scenario("5% better", 1.05, 0.0, True),
    Scenario("5% worse", 0.95, 0.0, False),
    Scenario("10% worse", 0.90, 0.0, False),
    Scenario("champion ages, 1% a week", 1.0, 0.01, True),
)


@dataclass
class _Year:
    """The newest test target of each user, and the sums over all targets since the champion became champion.

    Attributes:
        difficulty: uniform in [0, 1); a model whose share of kept hits is below it misses the target.
        champion_base, challenger_base: ranks before hits are lost; 0 is a miss.
        champion, challenger: ranks under the champion, and under the newest challenger.
        num_targets: int64 [U], the targets of each user so far.
        earlier: float64 [U, 2], NDCG@10 of challenger and champion, summed over all targets but the newest.
        age: weeks since the champion was new.
    """

    difficulty: NDArray[np.float64]
    champion_base: Ranks
    challenger_base: Ranks
    champion: Ranks
    challenger: Ranks
    num_targets: Ranks
    earlier: NDArray[np.float64]
    age: int = 0

    def newest(self) -> NDArray[np.float64]:
        """NDCG@10 of challenger and champion on the newest targets, float64 [U, 2]."""
        return np.stack([_VALUES[self.challenger], _VALUES[self.champion]], axis=1)


Decision = Callable[["_Year", ChampionAge, np.random.Generator], bool]


def current_rule(year: _Year, age: ChampionAge, generator: np.random.Generator) -> bool:
    """The rule before decision 028: the 95% bootstrap interval of one comparison, two-sided."""
    found = paired_rank_differences(
        year.challenger, year.champion, _VALUES, num_samples=1000, confidence=0.95, generator=generator
    )
    return found.low >= -0.05 * float(_VALUES[year.champion].mean())


def pooled_each_week(year: _Year, age: ChampionAge, generator: np.random.Generator) -> bool:
    """Pooled evidence, with an interval that is valid for one look but is used every week."""
    pooled = _pooled(year)
    return pooled.difference + 0.05 * pooled.champion >= NormalDist().inv_cdf(0.95) * pooled.standard_error(
        champion_weight=0.95
    )


def product_rule(**settings: float | None) -> Decision:
    """The rule of the product, with the given settings of `promotion`."""
    rules = PromotionConfig(**settings)

    def decide(year: _Year, age: ChampionAge, generator: np.random.Generator) -> bool:
        newest = paired_scores(*year.newest().T)
        return judge_quality(_pooled(year), newest, age, rules).passed

    return decide


RULES: dict[str, Decision] = {
    "one comparison (016)": current_rule,
    "pooled, 95% in each week": pooled_each_week,
    "pooled, 95% for all weeks": product_rule(outdated_weeks=None, outdated_unknown_share=None),
    "pooled; outdated: estimate only": product_rule(outdated_confidence=0.5),
    "pooled; outdated: 80%": product_rule(outdated_confidence=0.8),
    "pooled; outdated: 90%": product_rule(outdated_confidence=0.9),
}


@dataclass
class Outcome:
    """What a rule did in one cell of the table.

    Attributes:
        promotions: number of promotions of each simulated year.
        weeks_to_first: weeks until the first promotion of each year that has one.
        loss: average share of NDCG@10 that the served champion lacks, compared with a new model, per year.
    """

    promotions: list[int] = field(default_factory=list)
    weeks_to_first: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def share(self) -> tuple[float, float]:
        """Share of weeks with a promotion, and its Monte Carlo standard error over the years."""
        per_week = np.array(self.promotions) / WEEKS_PER_YEAR
        return float(per_week.mean()), float(per_week.std(ddof=1) / np.sqrt(len(per_week)))

    def years(self) -> tuple[float, float]:
        """Share of years with a promotion, and its standard error."""
        share = float(np.mean(np.array(self.promotions) > 0))
        return share, float(np.sqrt(share * (1 - share) / len(self.promotions)))


def simulate(scenario: Scenario, decide: Decision, *, num_users: int, num_years: int, seed: int) -> Outcome:
    """Simulate years of weekly decisions with one rule."""
    outcome = Outcome()
    for number in range(num_years):
        generator = np.random.default_rng([seed, num_users, number])
        promotions, losses = [], []
        year = _new_champion(num_users)
        for week in range(1, WEEKS_PER_YEAR + 1):
            _next_week(year, scenario, generator)
            unknown = 1 - (1 - scenario.weekly_loss) ** year.age
            losses.append(unknown)
            if decide(year, ChampionAge(year.age, unknown, unknown), generator):
                promotions.append(week)
                year = _new_champion(num_users)
        outcome.promotions.append(len(promotions))
        outcome.weeks_to_first += promotions[:1]
        outcome.loss.append(float(np.mean(losses)))
    return outcome


def _new_champion(num_users: int) -> _Year:
    misses = np.zeros(num_users, np.int64)
    return _Year(
        difficulty=np.zeros(num_users),
        champion_base=misses.copy(),
        challenger_base=misses.copy(),
        champion=misses.copy(),
        challenger=misses.copy(),
        num_targets=misses.copy(),
        earlier=np.zeros((num_users, 2)),
    )


def _next_week(year: _Year, scenario: Scenario, generator: np.random.Generator) -> None:
    """Replace the targets of the active users, and compute the ranks of a new challenger on all newest targets."""
    num_users = len(year.difficulty)
    year.age += 1
    active = generator.random(num_users) < (ACTIVE if year.age > 1 else 1.0)
    year.earlier[active] += year.newest()[active]
    year.num_targets[active] += 1
    year.difficulty[active] = generator.random(np.count_nonzero(active))
    year.champion_base[active] = np.searchsorted(_MARGINAL, generator.random(np.count_nonzero(active)), side="right")
    kept = KEPT * (1 - scenario.weekly_loss) ** year.age
    lost = year.difficulty[active] >= kept
    year.champion[active] = np.where(lost, 0, year.champion_base[active])
    drawn = (generator.random(num_users)[:, None] >= _CONDITIONAL[year.champion_base]).sum(axis=1)
    same = ~active & (generator.random(num_users) < SAME_RESULT)
    year.challenger_base = np.where(same, year.challenger_base, drawn)
    quality = KEPT * scenario.quality * (1 + SPREAD * generator.standard_normal())
    year.challenger = np.where(year.difficulty < quality, year.challenger_base, 0)


def _pooled(year: _Year) -> PairedScores:
    return scores_of_users(year.num_targets, year.earlier + year.newest(), num_comparisons=year.age)


_JOINT = (RANK_PAIRS + RANK_PAIRS.T) / (2 * RANK_PAIRS.sum())
_MARGINAL = np.minimum(_JOINT.sum(axis=1).cumsum(), 1.0)
_MARGINAL[-1] = 1.0
_CONDITIONAL = (_JOINT / _JOINT.sum(axis=1, keepdims=True)).cumsum(axis=1)
_CONDITIONAL[:, -1] = 1.0


def rows(num_users: int, scenarios: Sequence[Scenario], *, num_years: int, seed: int) -> Iterator[list[str]]:
    """Yield the rows of the table for one size. The bootstrap is slow, so its rule gets a fifth of many years."""
    for scenario in scenarios:
        for name, decide in RULES.items():
            years = max(min(num_years, 20), num_years // 5) if decide is current_rule else num_years
            found = simulate(scenario, decide, num_users=num_users, num_years=years, seed=seed)
            (share, error), (with_one, with_one_error) = found.share(), found.years()
            first = f"{np.mean(found.weeks_to_first):.0f}" if found.weeks_to_first else "never"
            yield [
                f"{num_users:,}",
                scenario.name,
                name,
                f"{share:.1%} ± {error:.1%}",
                f"{with_one:.0%} ± {with_one_error:.0%}",
                first,
                f"{np.mean(found.loss):.1%}" if scenario.weekly_loss else "",
            ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[300, 3_000, 30_000])
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--challengers", nargs="+", choices=names, default=names, help="rows of the table")
    parser.add_argument("--years", type=int, default=20, help="simulated years of 50 weeks per cell")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    head = ["users", "challengers", "rule", "weeks with a promotion", "years with one", "weeks to the first", "loss"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    start = time.monotonic()
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in arguments.challengers]
    for num_users in arguments.users:
        for row in rows(num_users, scenarios, num_years=arguments.years, seed=arguments.seed):
            print("| " + " | ".join(row) + " |", flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
