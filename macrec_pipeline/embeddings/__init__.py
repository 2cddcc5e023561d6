"""Encodes item texts and images: one embedding per item and modality, from which the semantic IDs are learned."""

from macrec_pipeline.embeddings.cache import CachedVectors
from macrec_pipeline.embeddings.checks import embedding_problems
from macrec_pipeline.embeddings.image_embedding import embed_images
from macrec_pipeline.embeddings.result import EmbeddingResult
from macrec_pipeline.embeddings.text_embedding import embed_texts

__all__ = ["CachedVectors", "EmbeddingResult", "embed_images", "embed_texts", "embedding_problems"]
