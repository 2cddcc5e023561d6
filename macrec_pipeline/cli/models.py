"""The commands about registered models: get recommendations, and decide which version is champion."""

from typing import Annotated, Literal

import typer

from macrec_pipeline.cli.completion import complete_dataset
from macrec_pipeline.cli.options import DEFAULT_DATA, DEFAULT_HOME, DataOption, HomeOption
from macrec_pipeline.terminal import (
    answer_table,
    champion_change_lines,
    console,
    explanation_table,
    history_lines,
    item_line,
    quieten_libraries,
)

ModelOfDatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        autocompletion=complete_dataset,
        help="Data set whose registered model, macrec-DATASET, to change.",
    ),
]
ReasonOption = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", help="Why; recorded with the model version.", show_default=False),
]


def recommend(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="A registered model: models:/NAME@ALIAS or models:/NAME/VERSION."
        ),
    ],
    history: Annotated[
        str, typer.Option("--history", metavar="ITEMS", help="Item IDs, oldest first, separated by commas.")
    ],
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", min=1, max=1000, help="Number of items to recommend.")] = 10,
    route: Annotated[
        Literal["fused", "text", "image", "collaborative"],
        typer.Option(
            "--route",
            metavar="ROUTE",
            help="Retrieval route: fused (all routes combined), text, image, or collaborative if the model has it.",
        ),
    ] = "fused",
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out items that are in the history.")
    ] = False,
    allow: Annotated[
        str | None,
        typer.Option("--allow", metavar="ITEMS", help="Recommend only these item IDs, separated by commas."),
    ] = None,
    exclude: Annotated[
        str,
        typer.Option(
            "--exclude",
            metavar="ITEMS",
            help="Recommend none of these item IDs, separated by commas.",
            show_default=False,
        ),
    ] = "",
    category: Annotated[
        list[str] | None,
        typer.Option(
            "--category", metavar="NAME", help="Recommend only items in this category. Repeat to allow several."
        ),
    ] = None,
    exclude_category: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-category",
            metavar="NAME",
            help="Recommend no items in this category. Repeat to exclude several.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say for each item which route carried it and which codes it shares."),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Recommend items for one history, with a registered model.

    Examples:

    - `macrec recommend --model models:/macrec-demo@champion --history P0001,P0042`
    - `macrec recommend --model models:/macrec-demo/3 --history P0001 -k 5 --category Camping`
    """
    quieten_libraries()
    from macrec_pipeline.recommender import RecommenderBundle
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules
    from macrec_pipeline.tracking import registered_bundle

    item_ids = _split_at_commas(history)
    rules = None
    if allow is not None or exclude or category or exclude_category:
        allowed = None if allow is None else _split_at_commas(allow)
        rules = Rules(allowed, _split_at_commas(exclude), category or None, exclude_category or ())
    with registered_bundle(model, home.folder) as registered:
        bundle = RecommenderBundle.load(registered.folder)
    answer = bundle.recommend_ids(
        [item_ids], k=k, route=route, exclude_seen=exclude_seen, rules=rules, explain=explain
    )[0]
    catalogue = dict(zip(bundle.item_ids, bundle.catalogue, strict=True))
    out = console()
    out.print(history_lines(item_ids, catalogue))
    if answer.fallback != "none":
        out.print("The model knows no item of this history, so these are its most popular items.")
    if answer.item_ids:
        out.print(answer_table(answer, catalogue, data=data.resolve()))
        if explain:
            out.print()
            out.print(explanation_table(answer))
    else:
        out.print("No item satisfies all of these options.")


def similar(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="ID of the item to compare with.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="A registered model: models:/NAME@ALIAS or models:/NAME/VERSION."
        ),
    ],
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", min=1, max=1000, help="Number of items to find.")] = 10,
    method: Annotated[
        Literal["latent", "embedding", "prefix"] | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="How items are compared: by quantized latent, by embedding, or by the prefix of their semantic IDs.",
            show_default="the first that the model supports",
        ),
    ] = None,
    modality: Annotated[
        Literal["text", "image"] | None,
        typer.Option(
            "--modality",
            metavar="MODALITY",
            help="Compare the texts or the images alone: text or image.",
            show_default="both",
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Find the items that are most similar to one item, with a registered model.

    Examples:

    - `macrec similar P0001 --model models:/macrec-demo@champion`
    - `macrec similar P0001 --model models:/macrec-demo@champion --modality image -k 5`
    """
    quieten_libraries()
    from macrec_pipeline.recommender import RecommenderBundle
    from macrec_pipeline.tracking import registered_bundle

    with registered_bundle(model, home.folder) as registered:
        bundle = RecommenderBundle.load(registered.folder)
        answer = bundle.similar_items(item, k=k, method=method, modality=modality)  # may read a file of the folder
    catalogue = dict(zip(bundle.item_ids, bundle.catalogue, strict=True))
    out = console()
    out.print(f"Most similar by {answer.method} to {item_line(item, catalogue)}:")
    out.print(answer_table(answer, catalogue, data=data.resolve()))


def promote(
    dataset: ModelOfDatasetArgument,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="NUMBER", min=1, help="Version to promote.", show_default="the challenger"),
    ] = None,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a model version the champion. Services use it from the next time they load the model.

    Examples:

    - `macrec promote demo`: the challenger becomes champion
    - `macrec promote demo --version 3 --reason "better for new users"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    change = open_tracking(home.folder, create=False).promote(dataset, version=version, reason=reason)
    console().print(champion_change_lines(change, undo_command=f"macrec rollback {dataset}"))


def rollback(
    dataset: ModelOfDatasetArgument,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Restore the previous champion. Run it again to go back one more.

    Example: `macrec rollback demo --reason "empty responses since noon"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    change = open_tracking(home.folder, create=False).rollback(dataset, reason=reason)
    version = change.previous.version if change.previous else "N"
    console().print(champion_change_lines(change, undo_command=f"macrec promote {dataset} --version {version}"))


def _split_at_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
