"""Servers: the Dagster code server and the local UIs."""
