"""Histories and semantic IDs -> the generative recommender: tasks, model, training, decoding, the served bundle.

SASRec, which knows items by who took them, is trained here as well: as a baseline, and as a retrieval route if asked.
"""

from macrec_pipeline.recommender.bundle.bundle import Recommendation, RecommenderBundle
from macrec_pipeline.recommender.bundle.predictions import beam_agreement, predict_test_users
from macrec_pipeline.recommender.bundle.side_by_side import TimedRecommendations, recommend_side_by_side
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, load_item_embeddings
from macrec_pipeline.recommender.sasrec.training import fit_sasrec
from macrec_pipeline.recommender.training.fit import fit_recommender
from macrec_pipeline.recommender.training.fitted_recommender import FittedRecommender

__all__ = [
    "FittedRecommender",
    "FittedSasrec",
    "Ranked",
    "Recommendation",
    "RecommenderBundle",
    "TimedRecommendations",
    "beam_agreement",
    "fit_recommender",
    "fit_sasrec",
    "load_item_embeddings",
    "predict_test_users",
    "recommend_side_by_side",
]
