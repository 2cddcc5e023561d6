"""Which files make a bundle, and whether they belong together."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary
from macrec_pipeline.recommender.sasrec.fitted import DESCRIPTION_FILE, WEIGHTS_FILE, FittedSasrec, load_sasrec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from macrec_pipeline.config import RecommenderConfig
    from macrec_pipeline.recommender.sasrec.model import Sasrec

FORMAT_VERSION = 2
_WITHOUT_OWN_DIGEST = 1  # bundles of this format are read as they are: what their description says is vouched by nobody
_OWN_DIGEST = "digest"
PARTS = ("model.safetensors", "semantic_ids.safetensors", "catalogue.json")
SASREC_PART = "sasrec.safetensors"
QUANTIZER = "quantizer"
_QUANTIZER_PART = re.compile(rf"{QUANTIZER}/\w+\.(?:json|safetensors)")


def verified_description(folder: Path) -> dict[str, Any]:
    """Read a bundle's `bundle.json`, having compared the digests that it gives with the parts beside it.

    Raises:
        StorageError: a part is missing, damaged or from another bundle, or the format is another's; names the file.
    """
    path = folder / "bundle.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, parts, needed = description["format_version"], description["parts"], parts_of(description["decoding"])
        needed = (*needed, *quantizer_parts(parts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is missing or not a bundle's description: {error}") from error
    if version not in (FORMAT_VERSION, _WITHOUT_OWN_DIGEST):
        raise StorageError(f"{path} has format {version}; this package reads format {FORMAT_VERSION}.")
    if version == FORMAT_VERSION and sealed(description)[_OWN_DIGEST] != description.get(_OWN_DIGEST):
        raise StorageError(
            f"{path} was changed after it was written: its own digest is not that of what it says. "
            "Materialize `recommender` again, or load another version."
        )
    for part in needed:
        if not (folder / part).is_file():
            raise StorageError(f"{folder / part} is missing. Materialize `recommender` again, or load another version.")
        if digest_of(folder / part) != parts.get(part):
            raise StorageError(
                f"{folder / part} does not belong to this bundle: its SHA-256 is not the one in bundle.json. "
                "Materialize `recommender` again, or load another version."
            )
    return description


def sealed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's description with the digest of all else that it says, over its canonical JSON."""
    said = {name: value for name, value in description.items() if name != _OWN_DIGEST}
    return said | {_OWN_DIGEST: hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def parts_of(decoding: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a bundle with these `DecodingConfig` settings has beside its description."""
    return (*PARTS, SASREC_PART) if decoding.get("collaborative_route", False) else PARTS


def quantizer_parts(parts: Mapping[str, str]) -> list[str]:
    """The files of a bundle's parts that make its quantizer; none if it has no quantizer."""
    return [part for part in parts if _QUANTIZER_PART.fullmatch(part)]


def write_sasrec(folder: Path, *, sasrec_folder: Path | None) -> dict[str, Any]:
    """Copy what `FittedSasrec.save` wrote into a bundle as its part; returns what `bundle.json` has to say of it.

    Raises:
        StorageError: there is no folder, SASRec was left out, or a file is missing or damaged.
    """
    if sasrec_folder is None:
        raise StorageError(
            "The bundle is to have a collaborative route, but got no trained SASRec. Give `sasrec_folder`, or set "
            "decoding.collaborative_route=false."
        )
    FittedSasrec.load(sasrec_folder)
    (folder / SASREC_PART).write_bytes((sasrec_folder / WEIGHTS_FILE).read_bytes())
    description: dict[str, Any] = json.loads((sasrec_folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    return description


def read_model(folder: Path, description: Mapping[str, Any]) -> GenerativeRecommender:
    """The recommender of a bundle whose parts are verified, on the CPU.

    Raises:
        StorageError: the weights are not what `bundle.json` says, or it says too little for this package.
    """
    try:
        config = cast("RecommenderConfig", SimpleNamespace(**description["recommender"]))
        vocabulary = Vocabulary(description["num_levels"], description["codebook_size"], config.num_prompt_tokens)
        model = GenerativeRecommender(vocabulary, config)
        model.load_weights(folder / "model.safetensors")
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(
            f"{folder / 'bundle.json'} does not describe a model that this package knows, or not that of its weights: "
            f"{error}. Load it with the code that was registered with it, or register another version."
        ) from error
    return model


def read_sasrec(folder: Path, description: Mapping[str, Any], *, device: torch.device) -> Sasrec | None:
    """The collaborative route of a bundle whose parts are verified, None if it has none.

    Raises:
        StorageError: the weights are not what `bundle.json` says, or of another catalogue than the bundle.
    """
    if SASREC_PART not in parts_of(description["decoding"]):
        return None
    model = load_sasrec(folder / SASREC_PART, description.get("sasrec", {}))
    if model.num_items != description["num_items"]:
        raise StorageError(
            f"{folder / SASREC_PART} knows {model.num_items} items, but bundle.json says {description['num_items']}. "
            "Materialize `sasrec` and `recommender` again, from the same histories."
        )
    return model.to(device)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, which is not held in memory, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
