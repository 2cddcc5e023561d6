"""`python -m macrec_pipeline.cli` is the `macrec` command."""

from macrec_pipeline.cli import main

main()
