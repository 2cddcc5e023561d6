"""Retrieval: histories become ranked items, by beam search over semantic IDs, by SASRec, and by fusing both."""
