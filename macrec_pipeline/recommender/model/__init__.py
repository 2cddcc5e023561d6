"""The recommender's network: what it reads (`history_encoding`) and what it computes (`generative_recommender`)."""
