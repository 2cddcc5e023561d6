"""Sharded work: one process, worker processes or Ray compute the shards of a long table."""
