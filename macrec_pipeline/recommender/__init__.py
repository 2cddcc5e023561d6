"""The generative recommender: semantic IDs and histories in, a trained model and a bundle that serves it out.

The folders build on one another in this order: `model` (encoding and network), `sasrec` (a collaborative model, which
serves as a baseline and, if configured, as a retrieval route), `retrieval`, `training` and `bundle`.
"""

from macrec_pipeline.recommender.bundle.bundle import Recommendation, RecommenderBundle
from macrec_pipeline.recommender.bundle.predictions import beam_agreement, predict_test_users
from macrec_pipeline.recommender.bundle.timed_comparison import TimedRecommendations, recommend_in_turns
from macrec_pipeline.recommender.bundle.unpacking import BundleContents, read_contents, unpack_models
from macrec_pipeline.recommender.retrieval.retriever import Ranked
from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, load_item_embeddings, save_item_ids
from macrec_pipeline.recommender.sasrec.training import SasrecStart, fit_sasrec
from macrec_pipeline.recommender.training.champion_refit import ChampionRefitPlan, plan_champion_refit
from macrec_pipeline.recommender.training.fitted_recommender import FittedRecommender
from macrec_pipeline.recommender.training.refit import RefitPlan, plan_recommender_refit, plan_sasrec_refit
from macrec_pipeline.recommender.training.train import fit_recommender

__all__ = [
    "BundleContents",
    "ChampionRefitPlan",
    "FittedRecommender",
    "FittedSasrec",
    "Ranked",
    "Recommendation",
    "RecommenderBundle",
    "RefitPlan",
    "SasrecStart",
    "TimedRecommendations",
    "beam_agreement",
    "fit_recommender",
    "fit_sasrec",
    "load_item_embeddings",
    "plan_champion_refit",
    "plan_recommender_refit",
    "plan_sasrec_refit",
    "predict_test_users",
    "read_contents",
    "recommend_in_turns",
    "save_item_ids",
    "unpack_models",
]
