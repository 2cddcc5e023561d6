"""Change which version of a registered model is the champion, and record the reason so that the change can be reverted.

The champion is the version that services load by the alias `champion`; the challenger is the newest version. The input
is a data set and, for a promotion, a version. The output is the alias on another version. A consumer that loads by
alias always finds either the old or the new champion, because MLflow moves an alias in a single statement.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from macrec_pipeline.errors import ChampionMovedError, TrackingError
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    DIGEST_TAG,
    EVALUATED_DIGEST_TAG,
    METRIC_TAG,
    model_name,
)
from macrec_pipeline.tracking.store import TrackingStore, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

# Tag of the registered model: all champions so far as a JSON list of versions, the present one last.
CHAMPIONS_TAG = "macrec.champions"
# Tag of a version: the latest decision about it, with time and reason.
DECISION_TAG = "macrec.decision"
# Heading in a version's description, followed by one line per decision.
_DECISIONS_HEADING = "Decisions, the newest last:"
# MLflow's table limits the length of a description. A single decision is shortened to leave room for others.
_MAX_DESCRIPTION, _MAX_DECISION = 5000, 500


@dataclass(frozen=True)
class VersionSummary:
    """A version of a registered model: its number, and the test metrics that it was registered with."""

    version: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class ChampionChange:
    """The result of a promotion or a rollback.

    Attributes:
        name: the registered model.
        champion: the version that has the alias now.
        previous: the version that had it before; None if there was none.
    """

    name: str
    champion: VersionSummary
    previous: VersionSummary | None

    @property
    def changed(self) -> bool:
        """Whether the alias moved."""
        return self.previous is None or self.previous.version != self.champion.version


def promote(
    store: TrackingStore, dataset: str, *, version: int | None, reason: str, over: int | None = None
) -> ChampionChange:
    """Make a version the champion; see `Tracker.promote`."""
    name = model_name(dataset)
    with one_line_errors(f"registered model {name}"), store.lock("aliases"):
        model = _registered_model(store, name)
        chosen = _version_with_alias(model, CHALLENGER) if version is None else version
        if chosen is None:
            raise TrackingError(f"{name} has no challenger. Name a version with --version N.")
        _require_version(store, name, chosen)
        current = _version_with_alias(model, CHAMPION)
        _require_champion(name, current, over)
        decision = f"promoted over {_version_text(current)}"
        return _set_champion(store, model, [*champion_history(model), chosen], decision=decision, reason=reason)


def replace_by_refit(store: TrackingStore, dataset: str, *, version: int, over: int, reason: str) -> ChampionChange:
    """Make a refit of the champion's evaluated model the champion; see `Tracker.promote_refit`."""
    name = model_name(dataset)
    with one_line_errors(f"registered model {name}"), store.lock("aliases"):
        model = _registered_model(store, name)
        _require_champion(name, _version_with_alias(model, CHAMPION), over)
        evaluated = {int(found.version): _evaluated_digest(found) for found in _versions(store, name)}
        others = [number for number in champion_history(model) if evaluated.get(number) != evaluated[version]]
        decision = f"champion as the refit of {_version_text(over)}"
        return _set_champion(store, model, [*others, over, version], decision=decision, reason=reason)


def rollback(store: TrackingStore, dataset: str, *, reason: str) -> ChampionChange:
    """Restore the previous champion; see `Tracker.rollback`."""
    name = model_name(dataset)
    with one_line_errors(f"registered model {name}"), store.lock("aliases"):
        model = _registered_model(store, name)
        current = _version_with_alias(model, CHAMPION)
        if current is None:
            raise TrackingError(f"{name} has no champion. Choose one: `macrec promote {dataset} --version N`.")
        existing = {int(found.version) for found in _versions(store, name)}
        champions = champion_history(model)
        while champions and (champions[-1] == current or champions[-1] not in existing):
            champions.pop()
        if not champions:
            raise TrackingError(
                f"{name} has no champion before version {current} that still exists. Choose a version: "
                f"`macrec promote {dataset} --version N`."
            )
        # The history is shortened too, so that the next rollback goes further back instead of undoing this one. It is
        # written before the alias moves: a champion with later versions in the history would count as their successor.
        _write_champions(store, model, champions)
        decision = f"champion again, rolled back from {_version_text(current)}"
        return _set_champion(store, model, champions, decision=decision, reason=reason)


def _set_champion(
    store: TrackingStore, model: RegisteredModel, champions: list[int], *, decision: str, reason: str
) -> ChampionChange:
    """Move the alias to the last of `champions`, then record the decision.

    If the process dies between the two steps, the champion is missing in the recorded history;
    `champion_history` adds it.
    """
    chosen, current = champions[-1], _version_with_alias(model, CHAMPION)
    change = ChampionChange(
        model.name,
        _summary(store, model.name, chosen),
        None if current is None else _summary(store, model.name, current),
    )
    if change.changed:
        store.client.set_registered_model_alias(model.name, CHAMPION, str(chosen))
        _write_champions(store, model, champions)
        write_decision(store, model.name, chosen, decision=decision, reason=reason)
    return change


def write_decision(store: TrackingStore, name: str, version: int, *, decision: str, reason: str) -> None:
    """Record a decision about a version, with time and reason.

    The tag holds the latest decision. The description holds as many decisions as fit. The caller must hold the lock
    `aliases`.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"{when}: {decision}{f'. {reason}' if reason else ''}"
    store.client.set_model_version_tag(name, str(version), DECISION_TAG, text)
    line = as_markdown(text if len(text) <= _MAX_DECISION else f"{text[: _MAX_DECISION - 3]}...")
    description = store.client.get_model_version(name, str(version)).description or ""
    store.client.update_model_version(name, str(version), description=_with_decision(description, f"- {line}"))


def _with_decision(description: str, line: str) -> str:
    """Append a decision to a description, and drop the oldest decisions if it becomes too long."""
    card, _, decisions = description.partition(_DECISIONS_HEADING)
    head = f"{card.rstrip()}\n\n{_DECISIONS_HEADING}\n".lstrip()
    lines = [*filter(None, decisions.splitlines()), line]
    while len(lines) > 1 and len(head) + sum(len(one) + 1 for one in lines) > _MAX_DESCRIPTION:
        del lines[0]
    return "\n".join([head, *lines])[:_MAX_DESCRIPTION]


def _write_champions(store: TrackingStore, model: RegisteredModel, champions: list[int]) -> None:
    store.client.set_registered_model_tag(model.name, CHAMPIONS_TAG, json.dumps(champions))


def _registered_model(store: TrackingStore, name: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = sorted(model.name for model in store.client.search_registered_models())
        raise TrackingError(
            f"There is no registered model {name}. The registered models are: {', '.join(names) or 'none'}."
        ) from None


def _versions(store: TrackingStore, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'", max_results=10_000))


def _require_version(store: TrackingStore, name: str, number: int) -> None:
    existing = sorted(int(found.version) for found in _versions(store, name))
    if number not in existing:
        raise TrackingError(
            f"{name} has no version {number}. The versions are: {', '.join(map(str, existing)) or 'none'}."
        )


def _summary(store: TrackingStore, name: str, number: int) -> VersionSummary:
    tags = store.client.get_model_version(name, str(number)).tags
    return VersionSummary(
        number,
        {key.removeprefix(METRIC_TAG): float(value) for key, value in tags.items() if key.startswith(METRIC_TAG)},
    )


def _require_champion(name: str, current: int | None, over: int | None) -> None:
    if over is not None and current != over:
        raise ChampionMovedError(f"The champion of {name} is now {_version_text(current)}, not version {over}.")


def _evaluated_digest(version: ModelVersion) -> str | None:
    """Return the digest of the bundle that a version's metrics belong to."""
    return version.tags.get(EVALUATED_DIGEST_TAG, version.tags.get(DIGEST_TAG))


def _version_with_alias(model: RegisteredModel, alias: str) -> int | None:
    return int(model.aliases[alias]) if alias in model.aliases else None


def champion_history(model: RegisteredModel) -> list[int]:
    """List all champions so far, the present one last, even if it got the alias in MLflow's UI."""
    champions = [int(number) for number in json.loads(model.tags.get(CHAMPIONS_TAG, "[]"))]
    current = _version_with_alias(model, CHAMPION)
    return champions if current is None or champions[-1:] == [current] else [*champions, current]


def _version_text(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
