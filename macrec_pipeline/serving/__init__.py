"""The HTTP service for the champion: batches of requests, readiness, metrics, and new champions without a restart."""
