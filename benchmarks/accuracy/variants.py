"""The systems of an ablation study: the full method, the method without one of its parts, other methods and baselines.

A variant is a list of overrides of a data set's settings, in the form of `--set`, so `macrec run demo --set ...` trains
the same model.
"""

FULL = "full"
ROUTES_ONLY = "recommender.tasks=[text_to_text, image_to_image]"
# Extensions that a data set's file turns on are off unless a variant turns them on.
AS_PUBLISHED = (
    "quantizer.collaborative_input_weight=0",
    "quantizer.collaborative_contrast_weight=0",
    "decoding.collaborative_route=false",
    "decoding.fusion=published",
)
ANCHORED = "quantizer.collaborative_input_weight=3"
THREE_ROUTES = ("decoding.fusion=calibrated", "decoding.collaborative_route=true")
VARIANTS: dict[str, tuple[str, ...]] = {
    FULL: (),
    # Without the layer contrast or the reconstruction alignment of the quantizer (MACRec section 3.2).
    "no_layer_contrast": ("quantizer.contrast_weight=0",),
    "no_reconstruction_alignment": ("quantizer.alignment_weight=0",),
    # Without the implicit alignment (section 3.3); all six tasks are still trained.
    "no_implicit": ("recommender.implicit_weight=0",),
    # Without the four prompted tasks, which are the explicit alignment. The implicit alignment uses the samples of two
    # of them, so this variant has no alignment at all, only two independent routes. The effect of the explicit tasks
    # alone is the difference to no_implicit, which the results contain as a further pair.
    "no_explicit": (ROUTES_ONLY,),
    # The loss of the released code, where it differs from the paper (docs/method.md).
    "as_released": ("quantizer.variant=as_released",),
    # TIGER: one modality, one route.
    "text_only": ("quantizer.method=single_modality", "recommender.tasks=[text_to_text]"),
    # MQL4GRec: a separate quantizer per modality, all tasks, no implicit alignment.
    "no_cross_modal": ("quantizer.method=single_modality", "recommender.implicit_weight=0"),
    # Semantic IDs by k-means instead of a trained quantizer.
    "residual_k_means": ("quantizer.method=residual_k_means",),
    # The full method with a collaborative signal: SASRec's item vectors as further input of the quantizer, SASRec in a
    # contrast of the quantizer, or SASRec as a third route (`calibrated` has the same fusion without it). Fusion is
    # fitted on validation targets. The anchor's weight was chosen among 0, 1 and 3 on those of MovieLens-100K.
    "anchored": (ANCHORED,),
    "collaborative_contrast": ("quantizer.collaborative_contrast_weight=0.1",),
    "calibrated": ("decoding.fusion=calibrated",),
    "three_routes": THREE_ROUTES,
    "anchored_three_routes": (ANCHORED, *THREE_ROUTES),
}
SASREC, ITEM_KNN, POPULARITY = "sasrec", "item_knn", "popularity"
BASELINES = (SASREC, ITEM_KNN, POPULARITY)
# Their results do not depend on the seed.
DETERMINISTIC = (ITEM_KNN, POPULARITY)
SYSTEMS = (*VARIANTS, *BASELINES)
"""All systems, in the order of the results."""
