"""Item texts and pictures -> one embedding an item and modality: what the cross-modal quantizer starts from."""

from macrec_pipeline.embeddings.checks import embedding_problems
from macrec_pipeline.embeddings.embedded import Embedded
from macrec_pipeline.embeddings.images import embed_images
from macrec_pipeline.embeddings.made_before import MadeBefore
from macrec_pipeline.embeddings.text import embed_texts

__all__ = ["Embedded", "MadeBefore", "embed_images", "embed_texts", "embedding_problems"]
