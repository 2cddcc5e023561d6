"""A bundle's folder, written from what training left; see `bundle` for what is in it and who reads it.

Shapes: N items, L levels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from macrec_pipeline.recommender.bundle.parts import (
    FORMAT_VERSION,
    QUANTIZER,
    SASREC_PART,
    digest_of,
    parts_of,
    sealed,
    write_sasrec,
)
from macrec_pipeline.recommender.model.vocabulary import MODALITIES
from macrec_pipeline.recommender.retrieval.fusion_fitting import load_fusion


def write_bundle(
    folder: Path,
    *,
    recommender_folder: Path,
    sasrec_folder: Path | None = None,
    quantizer_files: Sequence[Path] = (),
    item_ids: Sequence[str],
    popularity: np.ndarray,
    text_codes: np.ndarray | None,
    image_codes: np.ndarray | None,
    codebook_size: int,
    decoding: Mapping[str, Any],
    catalogue: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> None:
    """Write a bundle into an existing, empty folder; the same parts give the same bytes.

    Args:
        recommender_folder: what `FittedRecommender.save` and, for calibrated fusion, `save_fusion` wrote.
        sasrec_folder: what `FittedSasrec.save` wrote; needed, and read, only for `decoding.collaborative_route`.
        quantizer_files: what `FittedQuantizer.save`, and `Anchors.save` if its input is anchored, wrote; none where the
            IDs come from elsewhere.
        item_ids: N keys in the order of the item index.
        popularity: int64 [N], interactions of each item in the training parts.
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size), rows distinct; None for a modality that
            the catalogue lacks.
        decoding: `DecodingConfig` as a mapping.
        catalogue: {"title", "image_path"} an item, and "categories", a list or None, if they are known.
        provenance: data set, digests of what the bundle was made from; kept as it is.
    """
    weights = recommender_folder / "model.safetensors"
    shutil.copyfile(weights, folder / "model.safetensors")
    both = zip(MODALITIES, (text_codes, image_codes), strict=True)
    codes = {name: values for name, values in both if values is not None}
    tensors = {f"{name}_codes": values for name, values in codes.items()} | {"popularity": popularity}
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for name, array in tensors.items()},
        folder / "semantic_ids.safetensors",
    )
    items = [
        {"item_id": item_id, "title": item["title"], "image_path": item["image_path"]}
        | ({"categories": list(item["categories"])} if item.get("categories") else {})
        for item_id, item in zip(item_ids, catalogue, strict=True)
    ]
    (folder / "catalogue.json").write_text(json.dumps(items, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    description = {
        "format_version": FORMAT_VERSION,
        "num_items": len(items),
        "num_levels": int(next(iter(codes.values())).shape[1]),
        "codebook_size": codebook_size,
        "recommender": json.loads((recommender_folder / "recommender.json").read_text())["config"],
        "decoding": dict(decoding),
        "provenance": dict(provenance),
    }
    parts = parts_of(decoding)
    if SASREC_PART in parts:
        description["sasrec"] = write_sasrec(folder, sasrec_folder=sasrec_folder)
    if quantizer_files:
        (folder / QUANTIZER).mkdir()
    for path in quantizer_files:
        shutil.copyfile(path, folder / QUANTIZER / path.name)
    quantizer = [f"{QUANTIZER}/{path.name}" for path in quantizer_files]
    description["parts"] = {part: digest_of(folder / part) for part in (*parts, *quantizer)}
    if (fusion := load_fusion(recommender_folder)) is not None:
        description["fusion"] = asdict(fusion)
    (folder / "bundle.json").write_text(
        json.dumps(sealed(description), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
