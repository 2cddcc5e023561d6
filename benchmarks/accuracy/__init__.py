"""The proof: how accurate the recommender is beside its own parts, its baselines and what others published."""
