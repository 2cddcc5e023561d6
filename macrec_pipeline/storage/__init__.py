"""Store assets on disk or at a URL: tables as Parquet files, models and reports as folders.

Each version of an asset has a manifest and is written atomically.
"""

from macrec_pipeline.storage.embeddings import embedding_table, vectors_of
from macrec_pipeline.storage.manifest import Manifest
from macrec_pipeline.storage.store import FOLDER_ASSETS, AssetStore
from macrec_pipeline.storage.table_shards import write_shards

__all__ = ["FOLDER_ASSETS", "AssetStore", "Manifest", "embedding_table", "vectors_of", "write_shards"]
