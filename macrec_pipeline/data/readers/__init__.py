"""Readers: a data set's files become the raw tables."""
