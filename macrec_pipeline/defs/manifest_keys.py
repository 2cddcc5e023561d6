"""Keys of the `details` that assets keep in their manifests, where a later asset or run reads them.

Details do not count towards an asset's digest.
"""

INPUTS = "inputs"
"""The digest of each asset that this one was made from."""

CATALOGUE = "catalogue"
"""The digest of the item order that the asset's `item_index` refers to."""

SKIPPED = "skipped"
"""Why the asset was not computed and its table has no rows."""

LOST_CELLS = "lost_cells"
"""On the raw tables: the cells that reading turned into missing values, per column: file, column, reason, num_cells and
num_filled."""

MAY_BE_UNTOUCHED = "may_be_untouched"
"""On `items`: whether items without interactions were kept on purpose."""

MADE_BY = "made_by"
"""On an embedding asset: the encoder and its settings. On `semantic_ids`: the same for each modality."""

TRANSFORM = "transform"
"""On `image_embeddings`: what the encoder does to an image before the model sees it, as `words` and a `digest`."""

IDENTITY = "identity"
"""On `quantizer` and `semantic_ids`: whether earlier IDs were kept, and why (see `ids.continuity.Decision`)."""

CODES_OF = "codes_of"
"""On `recommender`: the digest of what gave the codes their meaning when the model was trained."""

WARM_STARTED = "warm_started"
"""On `sasrec` and `recommender`: whether the training started from earlier weights."""

REFIT_OF = "refit_of"
"""On `refitted_recommender`: the digest of the `recommender` that was refitted."""

CHAMPION = "champion"
"""On `champion_refit`: the version of the champion that was refitted."""

CHALLENGER = "challenger"
"""On `champion_refit`: the digest of the evaluated bundle that was refused."""

TRAINED_ON = "trained_on"
"""On `sasrec` and `recommender`: how many interactions and items there were, and the time of the newest one."""

GIVEN = "semantic IDs are given"
"""A value of `SKIPPED`: the data set provides semantic IDs, so nothing before them is computed."""
