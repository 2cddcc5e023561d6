"""Training: histories become batches, losses and the weights of the best epoch."""
