"""Makes `python -m macrec_pipeline.cli` the `macrec` command."""

from macrec_pipeline.cli import main

main()
