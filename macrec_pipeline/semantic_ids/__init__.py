"""Learns semantic IDs from embeddings: pseudo-labels, the quantizer and its training, assignment, and diagnostics."""

from macrec_pipeline.semantic_ids.alignment import Alignment, align
from macrec_pipeline.semantic_ids.anchors import Anchors, LearnedVectors
from macrec_pipeline.semantic_ids.assignment import AssignedIds, assign_semantic_ids, resolve_given_ids
from macrec_pipeline.semantic_ids.diagnostics import code_usage, collision_rate, perplexity, semantic_id_problems
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.fitting import fit_quantizer
from macrec_pipeline.semantic_ids.incremental import (
    AppendedIds,
    IdsByItem,
    RetiredIds,
    append_semantic_ids,
    ids_of_new_items,
)
from macrec_pipeline.semantic_ids.neighbours import impute_from_neighbours
from macrec_pipeline.semantic_ids.pseudo_labels import fit_pseudo_labels
from macrec_pipeline.semantic_ids.quality import LimitViolation, limit_violations, quality_report

__all__ = [
    "Alignment",
    "Anchors",
    "AppendedIds",
    "AssignedIds",
    "FittedQuantizer",
    "IdsByItem",
    "LearnedVectors",
    "LimitViolation",
    "RetiredIds",
    "align",
    "append_semantic_ids",
    "assign_semantic_ids",
    "code_usage",
    "collision_rate",
    "fit_pseudo_labels",
    "fit_quantizer",
    "ids_of_new_items",
    "impute_from_neighbours",
    "limit_violations",
    "perplexity",
    "quality_report",
    "resolve_given_ids",
    "semantic_id_problems",
]
