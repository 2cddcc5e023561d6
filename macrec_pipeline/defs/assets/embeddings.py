"""Embeddings: one vector an item and modality, from an encoder or, where the data set brings them, from its files."""

from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import Route
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.tracked import Stage, semantic_ids_are_given, stage, table_metadata
from macrec_pipeline.schemas import EMBEDDINGS
from macrec_pipeline.storage import embedding_table

GROUP = "embeddings"
KINDS = {"torch", "parquet"}


@dg.asset(
    deps=["items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="2",
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
    code_version="2",
    metadata=table_metadata("image_embeddings"),
    description="One vector an item from its picture. Items without a picture get an imputed vector and a flag.",
)
def image_embeddings(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Item pictures -> `EMBEDDINGS`."""
    with stage(context, settings, "image_embeddings") as work:
        return _embed(work, "image")


def _embed(work: Stage, route: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.given import given_embeddings

    items = work.table("items")
    given = given_embeddings(work.spec, work.data, items, route)
    if given is not None:
        table = embedding_table(items, vectors=given, imputed=np.zeros(items.height, dtype=np.bool_))
        return work.save(table, encoder="none: the data set brings its embeddings", dimensions=given.shape[1])
    if semantic_ids_are_given(work.spec):
        return work.skip(EMBEDDINGS.empty())
    return _encode(work, items, route)


def _encode(work: Stage, items: pl.DataFrame, route: Route) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.embeddings import embed_images, embed_texts
    from macrec_pipeline.runtime.devices import prepare_device

    device = prepare_device(work.config.runtime)
    if route == "text":
        texts = items["text"].to_list()
        embedded = embed_texts(texts, work.config.text_encoder, device=device, progress=work.progress)
    else:
        paths = [None if path is None else work.data / path for path in items["image_path"]]
        embedded = embed_images(paths, work.config.image_encoder, device=device, progress=work.progress)
    return work.save(
        embedding_table(items, vectors=embedded.vectors, imputed=embedded.imputed),
        encoder=embedded.encoder,
        dimensions=embedded.vectors.shape[1],
        imputed=int(embedded.imputed.sum()),
        imputed_share=float(embedded.imputed.mean()),
        items_per_second=embedded.items_per_second,
        unreadable=[f"{items['item_id'][row]}: {reason}" for row, reason in embedded.failures[:20]],
    )
