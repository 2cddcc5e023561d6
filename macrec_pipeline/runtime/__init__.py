"""What every stage may use: seeds, devices, progress, the training loop's common part."""
