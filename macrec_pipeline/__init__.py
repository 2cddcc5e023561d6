"""macrec_pipeline: from raw interactions and a multimodal catalogue to a registered generative recommender.

Importing this package has no effect and pulls in nothing heavy; the stages are sub-packages.
"""

__version__ = "0.1.0"
