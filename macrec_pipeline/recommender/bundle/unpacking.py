"""Turn a bundle back into what training can start from.

The input is the folder of a bundle. The output is one folder per model, as `FittedRecommender.save` and
`FittedSasrec.save` write them, together with the item IDs and codes of the catalogue that the models know. The training
logs are empty, because a bundle does not contain them.

Shapes (docs/notation.md): L levels, N items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from macrec_pipeline.recommender.bundle.format import (
    QUANTIZER,
    quantizer_parts,
    read_description,
    read_model,
    read_sasrec,
)
from macrec_pipeline.recommender.model.history_encoding import MODALITIES
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import save_fusion
from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, save_item_ids
from macrec_pipeline.recommender.training.fitted_recommender import FittedRecommender

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BundleContents:
    """What a bundle knows about its catalogue.

    Attributes:
        description: the content of `bundle.json`.
        item_ids: N ids in the order of the item index.
        codes: modality -> int64 [N, L], for each modality that the catalogue has.
        num_learned: interactions that the model was trained on.
        quantizer: the folder of the quantizer that assigned the codes; None if the data set brought them.
    """

    description: dict[str, Any]
    item_ids: list[str]
    codes: dict[str, np.ndarray]
    num_learned: int
    quantizer: Path | None


def read_contents(bundle: Path) -> BundleContents:
    """Verify a bundle and read everything but its models.

    Raises:
        StorageError: a part of the bundle is missing, damaged or from another bundle.
    """
    description = read_description(bundle)
    tensors = load_file(bundle / "semantic_ids.safetensors")
    catalogue = json.loads((bundle / "catalogue.json").read_text(encoding="utf-8"))
    codes = {name: tensors[f"{name}_codes"].numpy() for name in MODALITIES if f"{name}_codes" in tensors}
    return BundleContents(
        description,
        [item["item_id"] for item in catalogue],
        codes,
        int(tensors["popularity"].sum()),
        bundle / QUANTIZER if quantizer_parts(description["parts"]) else None,
    )


def unpack_models(bundle: Path, contents: BundleContents, destination: Path) -> tuple[Path, Path | None]:
    """Write the models of a bundle, and return the folder of the recommender and that of SASRec.

    The first also holds the weights of the fusion, if they were fitted. The second holds the item IDs too, and is None
    if the bundle has no collaborative route.

    Args:
        bundle: a folder that `read_contents` has verified.
        contents: what it returned.
        destination: an existing folder; equal bundles give equal bytes in it.

    Raises:
        StorageError: the weights do not fit the description.
    """
    description = contents.description
    recommender, sasrec = destination / "recommender", destination / "sasrec"
    recommender.mkdir(exist_ok=True)
    FittedRecommender(read_model(bundle, description), description["recommender"], [], best_epoch=1).save(recommender)
    if "fusion" in description:
        save_fusion(CalibratedFusion.from_description(description["fusion"], where=str(bundle)), recommender)
    collaborative = read_sasrec(bundle, description, device=torch.device("cpu"))
    if collaborative is None:
        return recommender, None
    sasrec.mkdir(exist_ok=True)
    FittedSasrec(collaborative, description["sasrec"]["config"], [], best_epoch=1).save(sasrec)
    save_item_ids(contents.item_ids, sasrec)
    return recommender, sasrec
