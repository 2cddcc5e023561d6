"""A small simulation of weekly promotions: the error rates that the decision record claims hold for few users too."""

from math import comb

import numpy as np
import pytest

from benchmarks.promotion_error_rates import (
    RULES,
    SCENARIOS,
    WEEKS_PER_YEAR,
    Outcome,
    pooled_each_week,
    product_rule,
    simulate,
)

EVIDENCE_ONLY = product_rule(outdated_weeks=None, outdated_unknown_share=None)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
NUM_YEARS = 100


def years_with_a_promotion(outcome: Outcome) -> int:
    return int(np.count_nonzero(outcome.promotions))


def binomial_limit(share: float, *, num_trials: int = NUM_YEARS, tail: float = 1e-3) -> int:
    """The smallest number of successes that is exceeded with a probability of at most `tail`."""
    probabilities = [comb(num_trials, k) * share**k * (1 - share) ** (num_trials - k) for k in range(num_trials + 1)]
    return int(np.searchsorted(np.cumsum(probabilities), 1 - tail))


@pytest.mark.parametrize("num_users", [300, 1_000])
def test_evidence_never_promotes_a_recipe_that_loses_five_percent(num_users: int) -> None:
    """At most 5% of the champions are ever replaced by one, within the binomial spread of 100 simulated years.

    An interval for one look, which is used every week, exceeds that limit, so the test can fail.
    """
    worse, limit = BY_NAME["5% worse"], binomial_limit(0.05)
    assert limit == 13
    found = simulate(worse, EVIDENCE_ONLY, num_users=num_users, num_years=NUM_YEARS, seed=1)
    assert years_with_a_promotion(found) <= limit
    naive = simulate(worse, pooled_each_week, num_users=num_users, num_years=NUM_YEARS, seed=1)
    assert years_with_a_promotion(naive) > limit


def test_an_ageing_champion_is_replaced() -> None:
    """With 300 users and the default settings, every year sees several promotions, and little quality is lost."""
    found = simulate(BY_NAME["champion ages, 1% a week"], product_rule(), num_users=300, num_years=NUM_YEARS, seed=1)
    assert min(found.promotions) >= 1
    assert np.mean(found.loss) < 0.5 * (1 - 0.99 ** np.arange(1, WEEKS_PER_YEAR + 1)).mean()


def test_a_better_challenger_is_promoted() -> None:
    """With 3,000 users it takes weeks, not years. The share of years is at least 95%, within the binomial spread."""
    found = simulate(BY_NAME["5% better"], product_rule(), num_users=3_000, num_years=NUM_YEARS, seed=1)
    assert NUM_YEARS - years_with_a_promotion(found) <= binomial_limit(0.05)


def test_the_simulation_is_reproducible() -> None:
    """The same seed gives the same decisions, for every rule of the table."""
    for decide in RULES.values():
        runs = [simulate(BY_NAME["equal"], decide, num_users=60, num_years=2, seed=3) for _ in range(2)]
        assert runs[0] == runs[1]
