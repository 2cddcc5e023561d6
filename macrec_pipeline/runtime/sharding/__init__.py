"""Splits the work on a long table into shards and runs them in this process, in worker processes or on Ray."""
