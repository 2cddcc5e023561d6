"""Histories and semantic IDs -> the generative recommender: tasks, model, training, decoding, the served bundle."""

from macrec_pipeline.recommender.bundle import Answer, RecommenderBundle
from macrec_pipeline.recommender.decoding import Ranked
from macrec_pipeline.recommender.fitting import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.prediction import beam_agreement, predict_test_users

__all__ = [
    "Answer",
    "FittedRecommender",
    "Ranked",
    "RecommenderBundle",
    "beam_agreement",
    "fit_recommender",
    "predict_test_users",
]
