"""Benchmarks of speed, accuracy and scaling: commands that take minutes to hours, and their recorded results."""
