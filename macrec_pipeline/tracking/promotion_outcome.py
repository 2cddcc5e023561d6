"""What becomes of a version that was just registered: champion, challenger that waits, or challenger that lost.

In: the version and what a comparison proposes. Out: the alias `champion`, if it is to move, by `promotion.promote`
alone, and on the version the decision, its reason and its figures, as tags and as the description that MLflow shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from macrec_pipeline.errors import ChampionMovedError
from macrec_pipeline.tracking.promotion import promote, write_decision
from macrec_pipeline.tracking.registry import CHAMPION
from macrec_pipeline.tracking.store import one_line_errors

if TYPE_CHECKING:
    from macrec_pipeline.tracking.registry import RegisteredVersion
    from macrec_pipeline.tracking.store import TrackingStore

Status = Literal["first version", "promoted", "advised", "refused", "not compared", "champion moved"]
# On a version: how its comparison ended, and with whom it was.
STATUS_TAG, COMPARED_TAG, FIGURE_TAG = "macrec.promotion", "macrec.compared_with", "compare."


@dataclass(frozen=True)
class Proposal:
    """What a comparison says of a new version.

    Attributes:
        over: the champion that it was compared with; None: with nobody.
        passed: whether every rule of promotion is kept.
        automatic: whether it may then be promoted without a person.
        reason: the rules' sentences, or why there was no comparison.
        figures: name -> number, kept as tags `compare.<name>`.
        card: Markdown with the figures, the description of the version; what is decided is added to it.
    """

    over: int | None
    passed: bool
    automatic: bool
    reason: str
    figures: Mapping[str, float]
    card: str


@dataclass(frozen=True)
class PromotionOutcome:
    """What was decided.

    Attributes:
        status: how it ended, in a word or two; the tag `macrec.promotion`.
        decision: the same as a sentence with its reason.
        aliases: those that name the version now.
    """

    status: Status
    decision: str
    aliases: tuple[str, ...]


def settle(store: TrackingStore, version: RegisteredVersion, dataset: str, proposal: Proposal) -> PromotionOutcome:
    """Promote or not, and write down which; see `Tracker.settle`."""
    number = str(version.version)
    tags = {f"{FIGURE_TAG}{name}": repr(value) for name, value in proposal.figures.items()}
    if proposal.over is not None:
        tags[COMPARED_TAG] = str(proposal.over)
    with one_line_errors(f"registered model {version.name}"):
        # Before the alias moves, so that no champion is without the figures that made it one.
        store.client.update_model_version(version.name, number, description=proposal.card)
        for name, value in tags.items():
            store.client.set_model_version_tag(version.name, number, name, value)
        status, said = _decide(store, version, dataset, proposal)
        if status != "promoted":  # `promote` has written its own
            with store.lock("aliases"):
                write_decision(store, version.name, version.version, decision=said, reason=proposal.reason)
        store.client.set_model_version_tag(version.name, number, STATUS_TAG, status)
    crowned = (CHAMPION,) if status == "promoted" else ()
    return PromotionOutcome(status, f"{said}. {proposal.reason}".strip(), version.aliases + crowned)


def _decide(store: TrackingStore, version: RegisteredVersion, dataset: str, proposal: Proposal) -> tuple[Status, str]:
    """Move the alias if it is to move; the status, and what was decided without its reason."""
    if CHAMPION in version.aliases:
        return "first version", "Champion, since there was none"
    if proposal.over is None:
        return "not compared", "Not promoted: it was compared with nobody"
    if not proposal.passed:
        return "refused", f"Not promoted over version {proposal.over}"
    if not proposal.automatic:
        by_hand = f"macrec promote {dataset} --version {version.version}"
        return "advised", f"Not promoted yet: it may replace version {proposal.over}, which a person decides: {by_hand}"
    try:
        promote(store, dataset, version=version.version, reason=proposal.reason, over=proposal.over)
    except ChampionMovedError as error:
        return (
            "champion moved",
            f"Not promoted: it was compared with version {proposal.over}, but {str(error).rstrip('.')}",
        )
    return "promoted", f"Promoted over version {proposal.over}"
