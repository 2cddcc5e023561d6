"""Histories and semantic IDs -> the generative recommender: tasks, model, training, decoding, the served bundle.

SASRec, which knows items by who took them, is trained here as well: as a baseline, and as a retrieval route if asked.
"""

from macrec_pipeline.recommender.bundle import Answer, RecommenderBundle
from macrec_pipeline.recommender.fitted_recommender import FittedRecommender
from macrec_pipeline.recommender.fitted_sasrec import FittedSasrec, load_item_embeddings
from macrec_pipeline.recommender.fitting import fit_recommender
from macrec_pipeline.recommender.in_turns import Answered, answer_in_turns
from macrec_pipeline.recommender.prediction import beam_agreement, predict_test_users
from macrec_pipeline.recommender.ranking import Ranked
from macrec_pipeline.recommender.sasrec_fitting import fit_sasrec

__all__ = [
    "Answer",
    "Answered",
    "FittedRecommender",
    "FittedSasrec",
    "Ranked",
    "RecommenderBundle",
    "answer_in_turns",
    "beam_agreement",
    "fit_recommender",
    "fit_sasrec",
    "load_item_embeddings",
    "predict_test_users",
]
