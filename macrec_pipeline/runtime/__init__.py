"""What every stage may use: devices, seeds, progress, checkpoints, the training loop, and sharded work."""
