"""Simulate twelve weeks of a very small shop, for `test_twelve_weeks`. It needs a process of its own.

python -m tests.benchmarks.twelve_weeks FOLDER
"""

import sys
from pathlib import Path

from benchmarks.year import prepare, run_year
from macrec_pipeline.data.demo.changing_shop import ShopPlan

NUM_WEEKS, EMPTY_WEEK, DAMAGED_WEEK, KILLED_WEEK = 12, 3, 5, 7
PLAN = ShopPlan(
    num_items=70,
    num_users=80,
    num_kinds=6,
    num_styles=4,
    new_items=2,
    leaving_items=2,
    new_users=2,
    weeks_before=16,
    empty_weeks=(EMPTY_WEEK,),
    damaged=((DAMAGED_WEEK, "unreadable_times"),),
)

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    prepare(directory)
    run_year(directory, num_weeks=NUM_WEEKS, plan=PLAN, retrain_every=0, killed_week=KILLED_WEEK)
