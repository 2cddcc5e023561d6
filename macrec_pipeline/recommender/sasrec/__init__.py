"""SASRec, a collaborative model: a baseline, and optionally a retrieval route."""
