"""The commands about registered models: ask one, and decide which is champion."""

from typing import Annotated, Any, Literal

import typer

from macrec_pipeline.cli.options import DEFAULT_DATA, DEFAULT_HOME, DataOption, HomeOption
from macrec_pipeline.terminal import answer_table, console, decision_lines, history_lines, quieten_libraries


def recommend(
    model: Annotated[str, typer.Option("--model", help="A registered model, as in models:/macrec-demo@champion.")],
    history: Annotated[str, typer.Option("--history", help="Item ids, oldest first, separated by commas.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    route: Annotated[
        Literal["fused", "text", "image", "collaborative"],
        typer.Option("--route", help="All routes fused, or one alone; collaborative where the model has that route."),
    ] = "fused",
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out what is in the history.")] = False,
    allow: Annotated[
        str | None, typer.Option("--allow", metavar="ITEMS", help="Only these item ids, separated by commas.")
    ] = None,
    exclude: Annotated[
        str, typer.Option("--exclude", metavar="ITEMS", help="None of these item ids, separated by commas.")
    ] = "",
    category: Annotated[
        list[str] | None,
        typer.Option("--category", metavar="NAME", help="Only items of this category; more than once: of any of them."),
    ] = None,
    exclude_category: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-category", metavar="NAME", help="No item of this category; may be given more than once."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Ask a registered model what comes next.

    Example: `macrec recommend --model models:/macrec-demo@champion --history P0001,P0042 -k 5`
    """
    quieten_libraries()
    from macrec_pipeline.recommender.retrieval.eligible_items import Rules
    from macrec_pipeline.tracking import load_model

    item_ids = _listed(history)
    rules = None
    if allow is not None or exclude or category or exclude_category:
        allowed = None if allow is None else _listed(allow)
        rules = Rules(allowed, _listed(exclude), category or None, exclude_category or ())
    loaded: Any = load_model(model, home.folder)
    bundle = loaded.unwrap_python_model().bundle
    answer = bundle.recommend_ids([item_ids], k=k, route=route, exclude_seen=exclude_seen, rules=rules)[0]
    catalogue = dict(zip(bundle.item_ids, bundle.catalogue, strict=True))
    out = console()
    out.print(history_lines(item_ids, catalogue))
    if answer.fallback != "none":
        out.print("Nothing of it is known to the model, so these are its most popular items.")
    out.print(answer_table(answer, catalogue, data=data.resolve()) if answer.item_ids else "The rules leave no item.")


def promote(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose registered model, macrec-DATASET.")],
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the challenger.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept on the version, for those who ask later.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a version the champion, which services load from their next start on.

    Example: `macrec promote demo --version 3 --reason "better on the spring users"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    decision = open_tracking(home.folder, create=False).promote(dataset, version=version, reason=reason)
    console().print(decision_lines(decision, take_back=f"macrec rollback {dataset}"))


def rollback(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose registered model, macrec-DATASET.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept on the version, for those who ask later.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make the champion before the present one the champion again; once more goes to the one before that.

    Example: `macrec rollback demo --reason "empty answers since noon"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    decision = open_tracking(home.folder, create=False).rollback(dataset, reason=reason)
    before = decision.before
    console().print(
        decision_lines(decision, take_back=f"macrec promote {dataset} --version {before.version if before else 'N'}")
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
