"""Questions that need a clock or hours of training: commands, and the results that they wrote."""
