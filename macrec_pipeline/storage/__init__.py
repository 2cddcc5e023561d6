"""Assets on disk or at a URL: tables as parquet, models and reports as folders.

Each has a manifest and is written atomically.
"""

from macrec_pipeline.storage.embeddings import embedding_table, vectors_of
from macrec_pipeline.storage.manifest import Manifest
from macrec_pipeline.storage.shards import write_shards
from macrec_pipeline.storage.store import FOLDER_ASSETS, AssetStore

__all__ = ["FOLDER_ASSETS", "AssetStore", "Manifest", "embedding_table", "vectors_of", "write_shards"]
