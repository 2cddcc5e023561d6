"""Retrieval: histories become ranked items, by beam search over the prefix tree, SASRec and their fusion."""
