"""Training with several processes: a training job as files, its launch by `torchrun`, and what each rank runs.

Covers the two stages that can be trained this way, the quantizer and the recommender. Of Dagster it knows only
`dagster_pipes`, through which rank 0 reports progress.
"""
