"""Servers: Dagster's code server in a deployment, and the user interfaces on this machine."""
