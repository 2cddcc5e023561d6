"""Decide whether a version that was just registered becomes the champion, and record the outcome on the version.

The input is the version and the result of its comparison with the champion. If the version is promoted, the alias
`champion` moves, by `promotion.promote` alone. The decision, its reason and its figures are recorded on the version, as
tags and in the description that MLflow shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from macrec_pipeline.errors import ChampionMovedError
from macrec_pipeline.tracking.promotion import ChampionChange, promote, replace_by_refit, write_decision
from macrec_pipeline.tracking.registry import CHAMPION
from macrec_pipeline.tracking.store import one_line_errors

if TYPE_CHECKING:
    from macrec_pipeline.tracking.registry import RegisteredVersion
    from macrec_pipeline.tracking.store import TrackingStore

Status = Literal["first version", "promoted", "advised", "refused", "not compared", "champion moved"]
_REFIT_STATUS = "refit of the champion"
# Tags of a version: the status of its promotion, the version that it was compared with, and a prefix of its figures.
STATUS_TAG, COMPARED_TAG, FIGURE_TAG = "macrec.promotion", "macrec.compared_with", "compare."


@dataclass(frozen=True)
class PromotionProposal:
    """The result of comparing a new version with the champion.

    Attributes:
        over: the champion that the version was compared with; None if there was no comparison.
        passed: whether the version passed every rule of promotion.
        automatic: whether a version that passed is promoted without asking a person.
        reason: the sentences of the rules, or why there was no comparison.
        figures: name -> number, stored as the tags `compare.<name>`.
        card: Markdown with the figures. It becomes the description of the version, and the decision is appended to it.
    """

    over: int | None
    passed: bool
    automatic: bool
    reason: str
    figures: Mapping[str, float]
    card: str


@dataclass(frozen=True)
class PromotionOutcome:
    """The decision about a version.

    Attributes:
        status: the outcome in one to two words, stored as the tag `macrec.promotion`. "advised": the version passed,
            but a person has to promote it. "refused": it failed a rule. "champion moved": another version became
            champion after the comparison.
        decision: the outcome as a sentence, with its reason.
        aliases: the aliases that the version has now.
    """

    status: Status
    decision: str
    aliases: tuple[str, ...]


def decide_promotion(
    store: TrackingStore, version: RegisteredVersion, dataset: str, proposal: PromotionProposal
) -> PromotionOutcome:
    """Promote a new version or not, and record the decision; see `Tracker.decide_promotion`."""
    number = str(version.version)
    tags = {f"{FIGURE_TAG}{name}": repr(value) for name, value in proposal.figures.items()}
    if proposal.over is not None:
        tags[COMPARED_TAG] = str(proposal.over)
    with one_line_errors(f"registered model {version.name}"):
        # The figures are recorded before the alias moves, so that no champion lacks the figures that led to it.
        store.client.update_model_version(version.name, number, description=proposal.card)
        for name, value in tags.items():
            store.client.set_model_version_tag(version.name, number, name, value)
        status, decision = _decide(store, version, dataset, proposal)
        if status != "promoted":  # otherwise `promote` has recorded the decision
            with store.lock("aliases"):
                write_decision(store, version.name, version.version, decision=decision, reason=proposal.reason)
        store.client.set_model_version_tag(version.name, number, STATUS_TAG, status)
    new_aliases = (CHAMPION,) if status == "promoted" else ()
    return PromotionOutcome(status, f"{decision}. {proposal.reason}".strip(), version.aliases + new_aliases)


def promote_refit(
    store: TrackingStore, version: RegisteredVersion, dataset: str, *, over: int, card: str, reason: str
) -> ChampionChange:
    """Make a refit of the champion the champion, and record it; see `Tracker.promote_refit`."""
    number = str(version.version)
    with one_line_errors(f"registered model {version.name}"):
        store.client.update_model_version(version.name, number, description=card)
        change = replace_by_refit(store, dataset, version=version.version, over=over, reason=reason)
        store.client.set_model_version_tag(version.name, number, STATUS_TAG, _REFIT_STATUS)
    return change


def _decide(
    store: TrackingStore, version: RegisteredVersion, dataset: str, proposal: PromotionProposal
) -> tuple[Status, str]:
    """Move the alias if the version is to be promoted; return the status and the decision without its reason."""
    if CHAMPION in version.aliases:
        return "first version", "Champion, because there was none"
    if proposal.over is None:
        return "not compared", "Not promoted, because it was not compared with the champion"
    if not proposal.passed:
        return "refused", f"Not promoted over version {proposal.over}"
    if not proposal.automatic:
        command = f"macrec promote {dataset} --version {version.version}"
        return "advised", f"May replace version {proposal.over}, but a person must promote it with `{command}`"
    try:
        promote(store, dataset, version=version.version, reason=proposal.reason, over=proposal.over)
    except ChampionMovedError as error:
        return (
            "champion moved",
            f"Not promoted: it was compared with version {proposal.over}. {str(error).rstrip('.')}",
        )
    return "promoted", f"Promoted over version {proposal.over}"
