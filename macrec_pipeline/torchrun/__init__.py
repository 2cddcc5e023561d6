"""Training as several processes: a job written as files, `torchrun`, and what each of its ranks runs.

It knows the two stages that are trained so, and of Dagster no more than `dagster_pipes`, which speaks to it.
"""
