"""Compare a new model with the champion on the same users, and judge the comparison by the rules of promotion.

The champion is the registered version that services load. The challenger is the newest registered version, or the
model that is about to become it.
"""
