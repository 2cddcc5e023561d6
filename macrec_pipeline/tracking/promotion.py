"""Who is champion: moved by a person's decision, which is kept with its reason and can be taken back.

In: a data set and, for a promotion, a version. Out: the alias `champion` on another version. A consumer that loads by
alias meets the one or the other, never neither: moving an alias is one statement in MLflow's store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from macrec_pipeline.errors import ChampionMovedError, TrackingError
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.tracking.registry import CHALLENGER, CHAMPION, model_name
from macrec_pipeline.tracking.store import TrackingStore, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

# On the registered model: every champion so far as a JSON list of versions, the present one last.
CHAMPIONS_TAG = "macrec.champions"
# On a version: what was decided about it last, when and why.
DECISION_TAG = "macrec.decision"
# In a version's description, before one line a decision about it.
_DECISIONS = "Decisions, the newest last:"
# MLflow's table has room for so many characters of a description; of one decision so many are shown in it.
_MAX_DESCRIPTION, _MAX_SHOWN = 5000, 500
_METRIC = "metric."


@dataclass(frozen=True)
class Contender:
    """A version in a decision: its number, and the test metrics that it was registered with."""

    version: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """What was done.

    Attributes:
        name: the registered model.
        champion: who has the alias now.
        before: who had it until then; None if nobody had.
    """

    name: str
    champion: Contender
    before: Contender | None

    @property
    def changed(self) -> bool:
        """Whether the alias moved."""
        return self.before is None or self.before.version != self.champion.version


def promote(
    store: TrackingStore, dataset: str, *, version: int | None, reason: str, over: int | None = None
) -> Decision:
    """Make a version champion; see `Tracker.promote`."""
    name = model_name(dataset)
    with one_line_errors(f"registered model {name}"), store.lock("aliases"):
        model = _model(store, name)
        chosen = _alias(model, CHALLENGER) if version is None else version
        if chosen is None:
            raise TrackingError(f"{name} has no challenger. Name a version: --version N.")
        _require_version(store, name, chosen)
        current = _alias(model, CHAMPION)
        if over is not None and current != over:
            raise ChampionMovedError(f"{_named(current)} is champion of {name} by now, and not version {over}.")
        decision = f"promoted over {_named(current)}"
        return _crown(store, model, [*_champions(model), chosen], decision=decision, reason=reason)


def rollback(store: TrackingStore, dataset: str, *, reason: str) -> Decision:
    """Give the alias back to the champion before; see `Tracker.rollback`."""
    name = model_name(dataset)
    with one_line_errors(f"registered model {name}"), store.lock("aliases"):
        model = _model(store, name)
        current = _alias(model, CHAMPION)
        if current is None:
            raise TrackingError(f"{name} has no champion. Make one: `macrec promote {dataset} --version N`.")
        there = {int(found.version) for found in _versions(store, name)}
        champions = _champions(model)
        while champions and (champions[-1] == current or champions[-1] not in there):
            champions.pop()
        if not champions:
            raise TrackingError(
                f"No champion of {name} came before version {current}, or none that is still there. "
                f"Name a version: `macrec promote {dataset} --version N`."
            )
        # The history goes back too, so that the next rollback goes further and not to and fro. It goes first: whoever
        # is champion with a later version still in it counts as having come after that one.
        _write_champions(store, model, champions)
        decision = f"champion again, rolled back from {_named(current)}"
        return _crown(store, model, champions, decision=decision, reason=reason)


def _crown(
    store: TrackingStore, model: RegisteredModel, champions: list[int], *, decision: str, reason: str
) -> Decision:
    """Move the alias to the last of `champions`, then write down why.

    A promotion that dies between the two leaves a champion whom the history lacks, which `_champions` makes good.
    """
    chosen, current = champions[-1], _alias(model, CHAMPION)
    made = Decision(
        model.name,
        _contender(store, model.name, chosen),
        None if current is None else _contender(store, model.name, current),
    )
    if made.changed:
        store.client.set_registered_model_alias(model.name, CHAMPION, str(chosen))
        _write_champions(store, model, champions)
        write_decision(store, model.name, chosen, decision=decision, reason=reason)
    return made


def write_decision(store: TrackingStore, name: str, version: int, *, decision: str, reason: str) -> None:
    """Keep on a version what was decided about it, when and why: the last in a tag, all that fit in the description.

    The caller holds the lock of the aliases.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"{when}: {decision}{f'. {reason}' if reason else ''}"
    store.client.set_model_version_tag(name, str(version), DECISION_TAG, text)
    shown = as_markdown(text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}...")
    before = store.client.get_model_version(name, str(version)).description or ""
    store.client.update_model_version(name, str(version), description=_with_line(before, f"- {shown}"))


def _with_line(description: str, line: str) -> str:
    """A description with one decision more; the oldest ones make room for it."""
    card, _, before = description.partition(_DECISIONS)
    head, lines = f"{card.rstrip()}\n\n{_DECISIONS}\n".lstrip(), [*filter(None, before.splitlines()), line]
    while len(lines) > 1 and len(head) + sum(len(one) + 1 for one in lines) > _MAX_DESCRIPTION:
        del lines[0]
    return "\n".join([head, *lines])[:_MAX_DESCRIPTION]


def _write_champions(store: TrackingStore, model: RegisteredModel, champions: list[int]) -> None:
    store.client.set_registered_model_tag(model.name, CHAMPIONS_TAG, json.dumps(champions))


def _model(store: TrackingStore, name: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = sorted(model.name for model in store.client.search_registered_models())
        raise TrackingError(f"There is no registered model {name}. Those are: {', '.join(known) or 'none'}.") from None


def _versions(store: TrackingStore, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'", max_results=10_000))


def _require_version(store: TrackingStore, name: str, number: int) -> None:
    there = sorted(int(found.version) for found in _versions(store, name))
    if number not in there:
        raise TrackingError(f"{name} has no version {number}. Those are: {', '.join(map(str, there)) or 'none'}.")


def _contender(store: TrackingStore, name: str, number: int) -> Contender:
    tags = store.client.get_model_version(name, str(number)).tags
    return Contender(
        number, {key.removeprefix(_METRIC): float(value) for key, value in tags.items() if key.startswith(_METRIC)}
    )


def _alias(model: RegisteredModel, alias: str) -> int | None:
    return int(model.aliases[alias]) if alias in model.aliases else None


def _champions(model: RegisteredModel) -> list[int]:
    """Every champion so far, the present one last, whoever moved the alias to it."""
    champions = [int(number) for number in json.loads(model.tags.get(CHAMPIONS_TAG, "[]"))]
    current = _alias(model, CHAMPION)
    return champions if current is None or champions[-1:] == [current] else [*champions, current]


def _named(version: int | None) -> str:
    return "nobody" if version is None else f"version {version}"
