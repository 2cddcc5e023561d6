"""SASRec: the collaborative retrieval route and baseline."""
