"""The `macrec` command: run the pipeline, look at data sets, open the UIs, ask a registered model."""

from macrec_pipeline.cli.application import main

__all__ = ["main"]
