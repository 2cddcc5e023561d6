"""Embeddings: one vector an item and modality, from an encoder or, where the data set brings them, from its files."""

import logging
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES, Route
from macrec_pipeline.defs.asset_context import AssetContext, semantic_ids_are_given, stage
from macrec_pipeline.defs.presentation import table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.errors import DataError, SchemaError, StorageError
from macrec_pipeline.schemas import EMBEDDINGS
from macrec_pipeline.storage import embedding_table, vectors_of

if TYPE_CHECKING:  # torch is loaded when an asset runs, not with the definitions
    from macrec_pipeline.embeddings import CachedVectors

logger = logging.getLogger(__name__)

MADE_BY = "made_by"
NAMES: dict[Route, str] = {"text": "a text", "image": "a picture"}
GROUP = "embeddings"
KINDS = {"torch", "parquet"}


@dg.asset(
    deps=["items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="4",
    pool=GPU_POOL,
    metadata=table_metadata("text_embeddings"),
    description="One vector an item from its text. Items without a text get an imputed vector and a flag.",
)
def text_embeddings(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Item texts -> `EMBEDDINGS`."""
    with stage(context, settings, "text_embeddings") as work:
        return _embed(work, "text")


@dg.asset(
    deps=["items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="4",
    pool=GPU_POOL,
    metadata=table_metadata("image_embeddings"),
    description="One vector an item from its picture. Items without a picture get an imputed vector and a flag.",
)
def image_embeddings(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Item pictures -> `EMBEDDINGS`."""
    with stage(context, settings, "image_embeddings") as work:
        return _embed(work, "image")


def _embed(work: AssetContext, route: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.readers.precomputed import precomputed_embeddings

    items = work.table("items")
    if (reason := _left_out(work, items, route)) is not None:
        return work.skip(EMBEDDINGS.empty(), reason)
    given = precomputed_embeddings(work.spec, work.data, items, route)
    if given is not None:
        table = embedding_table(items, vectors=given, imputed=np.zeros(items.height, dtype=np.bool_))
        return work.save(table, encoder="none: the data set brings its embeddings", dimensions=given.shape[1])
    if semantic_ids_are_given(work.spec):
        return work.skip(EMBEDDINGS.empty())
    return _encode(work, items, route)


def _left_out(work: AssetContext, items: pl.DataFrame, route: Route) -> str | None:
    """Why this run does without a modality; None if it does not, or if it lacks both, which the encoder then says.

    Raises:
        DataError: the version before had it, and nobody has said that it is to go.
    """
    chosen, others = work.config.routes, [other for other in ROUTES if other != route]
    if chosen is not None:
        return None if route in chosen else f"routes is {', '.join(chosen)}"
    if semantic_ids_are_given(work.spec) or _is_there(work, items, route):
        return None
    if not any(_is_there(work, items, other) for other in others):
        return None
    if work.store.has(work.asset) and MADE_BY in work.store.manifest(work.asset).details:
        raise DataError(
            f"No item of {work.dataset} has {NAMES[route]}, but the last {work.asset} were made from some. Look "
            f"whether the files are where the data set says. If it is meant, set routes=[{', '.join(others)}]."
        )
    return f"no item has {NAMES[route]}: one route, {', '.join(others)}"


def _is_there(work: AssetContext, items: pl.DataFrame, route: Route) -> bool:
    if getattr(work.spec.source, f"{route}_embeddings", None) is not None:
        return True
    values = items["text" if route == "text" else "image_path"]
    return bool((values.str.strip_chars() != "").any())


def _encode(work: AssetContext, items: pl.DataFrame, route: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.readers.item_texts import title_and_rest
    from macrec_pipeline.embeddings import embed_images, embed_texts
    from macrec_pipeline.runtime.devices import prepare_device

    runtime = work.config.runtime.for_shards()
    device = prepare_device(runtime)
    with work.store.scratch(work.asset) as shards:
        common: dict[str, Any] = {
            "device": device,
            "progress": work.progress,
            "before": _made_before(work),
            "shards": shards,
            "runtime": runtime,
        }
        if route == "text":
            whole = work.config.text_encoder.fields == "joined"
            texts = items["text"].to_list() if whole else title_and_rest(items["title"], items["text"])
            embedded = embed_texts(texts, work.config.text_encoder, **common)
        else:
            paths = [None if path is None else work.data / path for path in items["image_path"]]
            embedded = embed_images(paths, work.config.image_encoder, **common)
        table = embedding_table(
            items,
            vectors=embedded.vectors,
            imputed=embedded.imputed,
            contents=embedded.contents,
            problems=dict(embedded.failures),
        )
        return work.save(
            table,
            details={MADE_BY: embedded.made_by},
            encoder=embedded.encoder,
            dimensions=embedded.vectors.shape[1],
            imputed=int(embedded.imputed.sum()),
            imputed_share=float(embedded.imputed.mean()),
            encoded=embedded.num_encoded,
            items_per_second=embedded.items_per_second,
            batch_size=embedded.batch_size,
            num_unreadable=len(embedded.failures),
            unreadable=[f"{items['item_id'][row]}: {reason}" for row, reason in embedded.failures[:20]],
        )


def _made_before(work: AssetContext) -> "CachedVectors | None":
    """The vectors of the version before; none where there is no such version, or it cannot be read."""
    from macrec_pipeline.embeddings import CachedVectors

    if not work.store.has(work.asset):
        return None
    try:
        made_by = work.store.manifest(work.asset).details.get(MADE_BY)
        table = work.table(work.asset) if made_by else None
    except (StorageError, SchemaError) as error:
        logger.warning("Everything is encoded anew, since the version before cannot be read: %s", error)
        return None
    return None if table is None else CachedVectors(str(made_by), table["content"].to_list(), vectors_of(table))
