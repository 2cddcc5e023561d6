"""The `macrec` command: run the pipeline, inspect data sets and settings, use registered models, open the UIs."""

from macrec_pipeline.cli.application import main

__all__ = ["main"]
