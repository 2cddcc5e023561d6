"""Speed of each heavy stage, compared with a straightforward implementation and with the limits of the machine.

`rows.py` lists the stages. A stage is a small module of `Case`s. A case says how to create its input, what the pipeline
runs, what the baseline runs, what both results must have in common, and the least time that the machine needs.
"""
