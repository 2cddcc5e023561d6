"""Embeddings: one vector per item and modality, from an encoder or from files that the data set provides."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES, Route
from macrec_pipeline.datasets import IndexedSource
from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.manifest_keys import MADE_BY, TRANSFORM
from macrec_pipeline.defs.presentation import table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.errors import DataError, SchemaError, StorageError
from macrec_pipeline.schemas import EMBEDDINGS
from macrec_pipeline.storage import embedding_table, vectors_of

if TYPE_CHECKING:  # torch is loaded when an asset runs, not with the definitions
    from macrec_pipeline.embeddings import CachedVectors
    from macrec_pipeline.embeddings.result import EmbeddingResult

logger = logging.getLogger(__name__)

GROUP = "embeddings"
KINDS = {"torch", "parquet"}
_MAX_UNREADABLE_SHOWN = 20
_WITH_ARTICLE: dict[Route, str] = {"text": "a text", "image": "an image"}


@dg.asset(
    deps=["items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="4",
    pool=GPU_POOL,
    metadata=table_metadata("text_embeddings"),
    description="One vector per item, computed from its text by the text encoder; unchanged texts are not encoded "
    "again. Items without a text get an imputed vector and are flagged. Look at `imputed_share`.",
)
def text_embeddings(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Embed the items' texts to `EMBEDDINGS`."""
    with open_asset(context, settings, "text_embeddings") as asset:
        return _embed(asset, "text")


@dg.asset(
    deps=["items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="4",
    pool=GPU_POOL,
    metadata=table_metadata("image_embeddings"),
    description="One vector per item, computed from its image by the image encoder; unchanged images are not encoded "
    "again. Items without a readable image get an imputed vector and are flagged. Look at `imputed_share` and "
    "`unreadable`.",
)
def image_embeddings(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Embed the items' images to `EMBEDDINGS`."""
    with open_asset(context, settings, "image_embeddings") as asset:
        return _embed(asset, "image")


def _embed(asset: AssetContext, modality: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.readers.precomputed import precomputed_embeddings

    items = asset.read_table("items")
    if (reason := _reason_to_skip(asset, items, modality)) is not None:
        return asset.skip(EMBEDDINGS.empty(), reason)
    provided = precomputed_embeddings(asset.spec, asset.data_folder, items, modality)
    if provided is not None:
        table = embedding_table(items, vectors=provided, imputed=np.zeros(items.height, dtype=np.bool_))
        return asset.save_table(
            table, encoder="none: the data set provides its embeddings", dimensions=provided.shape[1]
        )
    if asset.has_given_ids:
        return asset.skip(EMBEDDINGS.empty())
    return _encode(asset, items, modality)


def _reason_to_skip(asset: AssetContext, items: pl.DataFrame, modality: Route) -> str | None:
    """Return why this run leaves a modality out; None if it does not.

    A catalogue that lacks both modalities is not skipped, so that the encoder reports the error.

    Raises:
        DataError: the previous version of the catalogue had this modality, and no setting says to drop it.
    """
    chosen, others = asset.config.routes, [other for other in ROUTES if other != modality]
    if chosen is not None:
        return None if modality in chosen else f"routes is {', '.join(chosen)}"
    if isinstance(source := asset.spec.source, IndexedSource) and source.given_modalities:
        if modality in source.given_modalities:
            return None
        return f"the data set has no {modality} semantic IDs: one route, {', '.join(source.given_modalities)}"
    if _has_data(asset, items, modality):
        return None
    if not any(_has_data(asset, items, other) for other in others):
        return None
    if asset.store.has(asset.name) and MADE_BY in asset.store.manifest(asset.name).details:
        raise DataError(
            f"No item of {asset.dataset} has {_WITH_ARTICLE[modality]}, but the previous {asset.name} were computed "
            f"from some. Check that the files are where the data set's file says. If this is intended, set "
            f"routes=[{', '.join(others)}]."
        )
    return f"no item has {_WITH_ARTICLE[modality]}: one route, {', '.join(others)}"


def _has_data(asset: AssetContext, items: pl.DataFrame, modality: Route) -> bool:
    if getattr(asset.spec.source, f"{modality}_embeddings", None) is not None:
        return True
    values = items["text" if modality == "text" else "image_path"]
    return bool((values.str.strip_chars() != "").any())


def _encode(asset: AssetContext, items: pl.DataFrame, modality: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.readers.column_parsing import title_and_rest
    from macrec_pipeline.embeddings import embed_images, embed_texts
    from macrec_pipeline.runtime.devices import prepare_device

    runtime = asset.config.runtime.for_shards()
    device = prepare_device(runtime)
    with asset.store.scratch(asset.name) as shards:
        common: dict[str, Any] = {
            "device": device,
            "progress": asset.progress,
            "cached": _previous_vectors(asset),
            "shard_folder": shards,
            "runtime": runtime,
        }
        if modality == "text":
            joined = asset.config.text_encoder.fields == "joined"
            texts = items["text"].to_list() if joined else title_and_rest(items["title"], items["text"])
            embedded = embed_texts(texts, asset.config.text_encoder, **common)
        else:
            paths = [None if path is None else asset.data_folder / path for path in items["image_path"]]
            embedded = _with_remembered_vectors(asset, items, embed_images(paths, asset.config.image_encoder, **common))
        table = embedding_table(
            items,
            vectors=embedded.vectors,
            imputed=embedded.imputed,
            contents=embedded.contents,
            problems=dict(embedded.failures),
        )
        transform = _transform(asset, embedded.encoder) if modality == "image" else {}
        return asset.save_table(
            table,
            details={MADE_BY: embedded.encoder_fingerprint, **transform.pop("details", {})},
            **transform,
            encoder=embedded.encoder,
            dimensions=embedded.vectors.shape[1],
            imputed=int(embedded.imputed.sum()),
            imputed_share=float(embedded.imputed.mean()),
            encoded=embedded.num_encoded,
            items_per_second=embedded.items_per_second,
            batch_size=embedded.batch_size,
            num_unreadable=len(embedded.failures),
            unreadable=[
                f"{items['item_id'][row]}: {reason}" for row, reason in embedded.failures[:_MAX_UNREADABLE_SHOWN]
            ],
        )


def _transform(asset: AssetContext, encoder: dict[str, Any]) -> dict[str, Any]:
    """Return the transform of images as metadata and `details`; warn if it differs from that of the previous version.

    Everything is then encoded again, because the transform is part of the encoder's fingerprint. The vectors still
    change, also if the weights are the same.
    """
    from macrec_pipeline.embeddings.image_transforms import describe_transform

    now = describe_transform(encoder["preprocessing"])
    described: dict[str, Any] = {"details": {TRANSFORM: now}, "transform": now["words"]}
    before = asset.store.manifest(asset.name).details.get(TRANSFORM) if asset.store.has(asset.name) else None
    if before and before["digest"] != now["digest"]:
        described["transform_before"] = before["words"]
        logger.warning(
            "%s: the encoder sees other images than before, so all vectors change, also if its weights are the same. "
            "Before: %s. Now: %s. Models that were trained on the previous vectors do not fit the new ones.",
            asset.dataset,
            before["words"],
            now["words"],
        )
    return described


def _with_remembered_vectors(
    asset: AssetContext, items: pl.DataFrame, embedded: "EmbeddingResult"
) -> "EmbeddingResult":
    """Give an item that has left the catalogue, and whose image is gone, the vector that it had before.

    Args:
        asset: the embeddings' asset.
        items: `ITEMS`.
        embedded: the embeddings of the images that exist, row by row of `items`.
    """
    unlisted = asset.store.read_beside("items", "unlisted_items")["item_index"].to_list()
    without_image = [row for row in unlisted if embedded.imputed[row]]
    if not without_image or _previous_vectors(asset) is None:
        return embedded
    if asset.store.manifest(asset.name).details.get(MADE_BY) != embedded.encoder_fingerprint:
        return embedded
    previous = asset.read_table(asset.name).filter(~pl.col("imputed"))
    row_of = {item_id: row for row, item_id in enumerate(previous["item_id"])}
    remembered = {row: row_of[items["item_id"][row]] for row in without_image if items["item_id"][row] in row_of}
    if not remembered:
        return embedded
    rows, sources = list(remembered), list(remembered.values())
    vectors, imputed, contents = embedded.vectors.copy(), embedded.imputed.copy(), list(embedded.contents)
    vectors[rows], imputed[rows] = vectors_of(previous)[sources], False
    for row, source in remembered.items():
        contents[row] = previous["content"][source]
    failures = tuple(failure for failure in embedded.failures if failure[0] not in remembered)
    return replace(embedded, vectors=vectors, imputed=imputed, contents=tuple(contents), failures=failures)


def _previous_vectors(asset: AssetContext) -> "CachedVectors | None":
    """Return the vectors of the asset's previous version; None if there is no such version or it cannot be read."""
    from macrec_pipeline.embeddings import CachedVectors

    if not asset.store.has(asset.name):
        return None
    try:
        made_by = asset.store.manifest(asset.name).details.get(MADE_BY)
        table = asset.read_table(asset.name) if made_by else None
    except (StorageError, SchemaError) as error:
        logger.warning("Every item is encoded again, because the previous version cannot be read: %s", error)
        return None
    return None if table is None else CachedVectors(str(made_by), table["content"].to_list(), vectors_of(table))
