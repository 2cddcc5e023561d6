"""What the semantic ID assets need besides the core: tables, continuity, quality, shards."""
