"""Runs: launch, resume, clean up, report failures."""
