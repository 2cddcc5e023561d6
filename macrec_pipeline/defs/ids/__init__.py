"""What the semantic ID assets need besides the numeric core: continuity, quality, sharding and table conversion."""
