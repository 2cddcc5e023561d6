"""What is compared: the whole method, the method without one of its parts, other methods, and plain baselines.

A variant is what must be laid over the settings of a data set, written as after `--set`, so that
`macrec run demo --set ...` trains the very same thing.
"""

FULL = "full"
ROUTES_ONLY = "recommender.tasks=[text_to_text, image_to_image]"
# What a data set's file turns on beyond the published method is off, unless the variant asks for it.
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
    # The layer contrast and the reconstruction alignment of the quantizer (MACRec section 3.2).
    "no_layer_contrast": ("quantizer.contrast_weight=0",),
    "no_reconstruction_alignment": ("quantizer.alignment_weight=0",),
    # The implicit alignment alone (section 3.3): all six tasks are still trained.
    "no_implicit": ("recommender.implicit_weight=0",),
    # The four prompted tasks are the explicit alignment. The implicit one is measured on the samples of two of them and
    # goes with them, so this is the recommender without any alignment: two routes side by side. What the explicit tasks
    # give by themselves is its distance to no_implicit, which the results hold as a pair of their own.
    "no_explicit": (ROUTES_ONLY,),
    # The loss that the released code computes, where it differs from the paper (docs/method.md).
    "as_released": ("quantizer.variant=as_released",),
    # TIGER: one modality, one route.
    "text_only": ("quantizer.method=single_modality", "recommender.tasks=[text_to_text]"),
    # MQL4GRec: each modality quantized by itself, all tasks, no implicit alignment.
    "no_cross_modal": ("quantizer.method=single_modality", "recommender.implicit_weight=0"),
    # IDs without any training.
    "residual_k_means": ("quantizer.method=residual_k_means",),
    # The whole method and a collaborative signal: SASRec's item vectors beside the quantizer's input, in a contrast of
    # the quantizer, or SASRec as a third route (`calibrated` is its fusion without it). Fusion is fitted on validation
    # targets. The weight of the anchor was chosen on those of MovieLens-100K, of 0, 1 and 3.
    "anchored": (ANCHORED,),
    "collaborative_contrast": ("quantizer.collaborative_contrast_weight=0.1",),
    "calibrated": ("decoding.fusion=calibrated",),
    "three_routes": THREE_ROUTES,
    "anchored_three_routes": (ANCHORED, *THREE_ROUTES),
}
SASREC, ITEM_KNN, POPULARITY = "sasrec", "item_knn", "popularity"
BASELINES = (SASREC, ITEM_KNN, POPULARITY)
# One answer whatever the seed.
DETERMINISTIC = (ITEM_KNN, POPULARITY)
SYSTEMS = (*VARIANTS, *BASELINES)
"""Every row of the results, in their order."""
