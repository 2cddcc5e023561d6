"""Estimates for sizes that were not run: simulations, and extrapolation from measured rates."""
