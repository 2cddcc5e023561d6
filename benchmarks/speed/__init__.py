"""How fast each heavy stage is, beside a plain way of doing the same and beside what the machine can do.

`rows.py` lists the stages. A stage is one small module that gives `Case`s: how to make its input, ours, the baseline,
what both must agree in, and the seconds below which this machine cannot get.
"""
