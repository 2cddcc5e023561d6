"""Accuracy of the recommender, compared with its variants, with baselines and with published results."""
