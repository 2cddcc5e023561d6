"""Training of the generative recommender: histories become batches and losses, and the best weights are kept."""
