"""Dagster runs: launching, resuming, cleaning up after dead ones, and reporting failures."""
