"""The bundle's format on disk: one folder with everything that is needed to serve recommendations.

    bundle.json                settings, size of the catalogue, the SHA-256 digest of each part, and its own digest
    model.safetensors          weights of the generative recommender
    semantic_ids.safetensors   semantic IDs in each modality, and how popular each item was in the training data
    catalogue.json             item ids, titles, image paths and categories, in the order of the item index
    sasrec.safetensors         weights of SASRec; only if it is a retrieval route
    embeddings.safetensors     the items' embeddings, int8 [N, D] per modality; only with `decoding.store_embeddings`
    quantizer/                 what assigned the semantic IDs; absent if the data set brought them. Serving ignores it.

`write_bundle` writes such a folder from the results of training. `read_description` verifies one, and the functions
after it load the parts. A bundle whose parts do not belong together is rejected, and nothing in it is pickled.

Shapes (docs/notation.md): L levels, N items.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import MODALITIES, Vocabulary
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import load_fusion
from macrec_pipeline.recommender.retrieval.similar_items import compressed_embeddings
from macrec_pipeline.recommender.sasrec.fitted import DESCRIPTION_FILE, WEIGHTS_FILE, FittedSasrec, load_sasrec

if TYPE_CHECKING:
    from macrec_pipeline.recommender.sasrec.model import Sasrec

FORMAT_VERSION = 2
# Bundles of this version have no digest of their own, so edits of `bundle.json` go unnoticed. They still load.
_VERSION_WITHOUT_DIGEST = 1
_DIGEST_KEY = "digest"
PARTS = ("model.safetensors", "semantic_ids.safetensors", "catalogue.json")
SASREC_PART = "sasrec.safetensors"
EMBEDDINGS_PART = "embeddings.safetensors"
QUANTIZER = "quantizer"
_QUANTIZER_PART = re.compile(rf"{QUANTIZER}/\w+\.(?:json|safetensors)")
_REMEDY = "Materialize `recommender` again, or load another version."


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
    embeddings: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a bundle into an existing, empty folder. Equal arguments give equal bytes.

    Args:
        folder: where to write.
        recommender_folder: holds what `FittedRecommender.save` wrote and, for calibrated fusion, `save_fusion`.
        sasrec_folder: holds what `FittedSasrec.save` wrote; needed, and read, only if `decoding` has
            `collaborative_route`.
        quantizer_files: what `FittedQuantizer.save` wrote, and `Anchors.save` if the quantizer is anchored; none if
            the data set brought the semantic IDs.
        item_ids: N ids in the order of the item index.
        popularity: int64 [N], interactions of each item in the training parts.
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size), no two rows equal; None for a modality that
            the catalogue lacks.
        codebook_size: K.
        decoding: the fields of `DecodingConfig`.
        catalogue: "title" and "image_path" of each item, "categories", a list or None, if they are known, and "listed",
            false for an item that has left the catalogue and must not be recommended.
        provenance: data set and input digests of the bundle; stored unchanged.
        embeddings: {modality: float [N, D]}; needed, and read, only if `decoding` has `store_embeddings`.

    Raises:
        StorageError: the bundle needs a SASRec or embeddings, but got none.
    """
    shutil.copyfile(recommender_folder / "model.safetensors", folder / "model.safetensors")
    codes_of = zip(MODALITIES, (text_codes, image_codes), strict=True)
    codes = {modality: values for modality, values in codes_of if values is not None}
    tensors = {f"{modality}_codes": values for modality, values in codes.items()} | {"popularity": popularity}
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for name, array in tensors.items()},
        folder / "semantic_ids.safetensors",
    )
    items = [
        {"item_id": item_id, "title": item["title"], "image_path": item["image_path"]}
        | ({"categories": list(item["categories"])} if item.get("categories") else {})
        | ({} if item.get("listed", True) else {"listed": False})
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
    parts = _required_parts(decoding)
    if SASREC_PART in parts:
        description["sasrec"] = _copy_sasrec(sasrec_folder, folder)
    if EMBEDDINGS_PART in parts:
        _write_embeddings({} if embeddings is None else embeddings, folder, modalities=list(codes))
    if quantizer_files:
        (folder / QUANTIZER).mkdir()
    for path in quantizer_files:
        shutil.copyfile(path, folder / QUANTIZER / path.name)
    quantizer = [f"{QUANTIZER}/{path.name}" for path in quantizer_files]
    description["parts"] = {part: file_digest(folder / part) for part in (*parts, *quantizer)}
    if (fusion := load_fusion(recommender_folder)) is not None:
        description["fusion"] = asdict(fusion)
    (folder / "bundle.json").write_text(
        json.dumps(with_digest(description), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Read `bundle.json`, and verify its own digest and the digest of each part.

    Raises:
        StorageError: a part is missing, damaged or from another bundle, or the format is unknown. The message names
            the file.
    """
    path = folder / "bundle.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, digests = description["format_version"], description["parts"]
        required = (*_required_parts(description["decoding"]), *quantizer_parts(digests))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is missing or does not describe a bundle: {error}. {_REMEDY}") from error
    if version not in (FORMAT_VERSION, _VERSION_WITHOUT_DIGEST):
        raise StorageError(
            f"{path} has format version {version}, but this package reads only versions up to {FORMAT_VERSION}. "
            "Load the bundle with the code that was registered with it."
        )
    if version == FORMAT_VERSION and with_digest(description)[_DIGEST_KEY] != description.get(_DIGEST_KEY):
        raise StorageError(f"{path} was edited after it was written: its content does not match its digest. {_REMEDY}")
    for part in required:
        if not (folder / part).is_file():
            raise StorageError(f"{folder / part} is missing. {_REMEDY}")
        if file_digest(folder / part) != digests.get(part):
            raise StorageError(
                f"{folder / part} does not belong to this bundle: its SHA-256 digest differs from the one in "
                f"bundle.json. {_REMEDY}"
            )
    return description


def read_model(folder: Path, description: Mapping[str, Any]) -> GenerativeRecommender:
    """Load the generative recommender of a verified bundle, on the CPU.

    Raises:
        StorageError: the weights do not fit the description, or the description lacks a setting of the model.
    """
    try:
        settings = description["recommender"]
        vocabulary = Vocabulary(description["num_levels"], description["codebook_size"], settings["num_prompt_tokens"])
        model = GenerativeRecommender(vocabulary, ModelSpec.from_settings(settings))
        model.load_weights(folder / "model.safetensors")
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(
            f"{folder / 'bundle.json'} does not describe a model that this package can build, or its weights have "
            f"other shapes: {error}. Load the bundle with the code that was registered with it, or load another "
            "version."
        ) from error
    return model


def read_sasrec(folder: Path, description: Mapping[str, Any], *, device: torch.device) -> Sasrec | None:
    """Load the SASRec of a verified bundle; None if the bundle has no collaborative route.

    Raises:
        StorageError: the weights do not fit the description, or belong to another catalogue.
    """
    if SASREC_PART not in _required_parts(description["decoding"]):
        return None
    sasrec = load_sasrec(folder / SASREC_PART, description.get("sasrec", {}))
    if sasrec.num_items != description["num_items"]:
        raise StorageError(
            f"{folder / SASREC_PART} was trained on {sasrec.num_items} items, but the catalogue in bundle.json has "
            f"{description['num_items']}. Materialize `sasrec` and `recommender` again, from the same histories."
        )
    return sasrec.to(device)


def read_fusion(folder: Path, description: Mapping[str, Any], *, routes: Sequence[str]) -> CalibratedFusion | None:
    """Return the calibrated rule of a verified bundle; None if it uses the published rule, or has only one route.

    Args:
        folder: the bundle, for error messages.
        description: what `read_description` returned.
        routes: the retrieval routes of the bundle.

    Raises:
        StorageError: the settings require a calibrated rule, but none was fitted, or it was fitted for other routes.
    """
    if description["decoding"].get("fusion", "published") == "published" or len(routes) == 1:
        return None
    path = folder / "bundle.json"
    if "fusion" not in description:
        raise StorageError(
            f"{path} requires calibrated fusion, but contains no fitted weights. "
            "Materialize `recommender` again, or set `decoding.fusion` to published."
        )
    fusion = CalibratedFusion.from_description(description["fusion"], where=f"`fusion` in {path}")
    weighted, existing = (", ".join(sorted(names)) for names in (fusion.weights, routes))
    if weighted != existing:
        raise StorageError(
            f"`fusion` in {path} has weights for {weighted}, but the routes are {existing}. "
            "Materialize `recommender` again."
        )
    return fusion


def quantizer_parts(parts: Mapping[str, str]) -> list[str]:
    """Return those of a bundle's parts that make up its quantizer; empty if it has none."""
    return [part for part in parts if _QUANTIZER_PART.fullmatch(part)]


def with_digest(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description together with the digest of everything else in it, computed on canonical JSON."""
    content = {name: value for name, value in description.items() if name != _DIGEST_KEY}
    return content | {_DIGEST_KEY: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def file_digest(path: Path) -> str:
    """Compute the SHA-256 digest of a file in hexadecimal, without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _required_parts(decoding: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that a bundle with these `DecodingConfig` fields has, apart from the quantizer."""
    optional = {SASREC_PART: "collaborative_route", EMBEDDINGS_PART: "store_embeddings"}
    return (*PARTS, *(part for part, setting in optional.items() if decoding.get(setting, False)))


def _write_embeddings(embeddings: Mapping[str, np.ndarray], folder: Path, *, modalities: Sequence[str]) -> None:
    """Write the embeddings of the modalities that have semantic IDs. Raise `StorageError` if one is missing."""
    if missing := [modality for modality in modalities if modality not in embeddings]:
        raise StorageError(
            f"The bundle needs the {' and '.join(missing)} embeddings of the items, but got none. Pass `embeddings`, "
            "or set `decoding.store_embeddings` to false."
        )
    stored = {modality: torch.from_numpy(compressed_embeddings(embeddings[modality])) for modality in modalities}
    save_file(stored, folder / EMBEDDINGS_PART)


def _copy_sasrec(sasrec_folder: Path | None, folder: Path) -> dict[str, Any]:
    """Copy the weights of SASRec into a bundle, and return its description for `bundle.json`.

    Raises:
        StorageError: there is no folder, SASRec was skipped, or a file is missing or damaged.
    """
    if sasrec_folder is None:
        raise StorageError(
            "The bundle needs a trained SASRec for its collaborative route, but got none. Pass `sasrec_folder`, or set "
            "`decoding.collaborative_route` to false."
        )
    FittedSasrec.load(sasrec_folder)
    (folder / SASREC_PART).write_bytes((sasrec_folder / WEIGHTS_FILE).read_bytes())
    description: dict[str, Any] = json.loads((sasrec_folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    return description
