"""Readers turn the files of a data set into the raw tables.

`reader` is the interface, and `registry` finds the reader of a data set. Each built-in reader has a module: `tables`,
`demo`, `indexed`, `amazon` and `movielens`. They share the building blocks `text_files`, `json_lines`, `rating_logs`,
`column_parsing` and `image_files`. `precomputed` reads published semantic IDs and embeddings.
"""
