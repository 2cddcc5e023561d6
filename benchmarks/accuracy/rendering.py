"""Results files as markdown tables: one of `ablations.py`, and all of `instruments.py` beside published figures.

In: the JSON documents. Out: text without trailing newline. Figures are means, with a standard deviation where there are
several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("hr_1", "hr_5", "hr_10", "ndcg_5", "ndcg_10")
METRIC_NAMES = {"hr_1": "HR@1", "hr_5": "HR@5", "hr_10": "HR@10", "ndcg_5": "NDCG@5", "ndcg_10": "NDCG@10"}
_SETTINGS = {"seen_allowed": "Seen items allowed", "seen_excluded": "Seen items excluded"}
_SHOWN_WHOLE = "full"
_HEADLINE = "ndcg_10"


def table(document: Mapping[str, Any]) -> str:
    """The tables of one results file of `ablations.py`: what it is of, then one table a setting."""
    parts = [_caption(document)]
    for setting, title in _SETTINGS.items():
        parts += [f"{title}:", _ablation_table(document, setting)]
    pairs = [row for row in document["comparisons"] if not _from_full(row) and row["metric"] == _HEADLINE]
    if pairs:
        parts.append("\n".join(_pair_line(row) for row in pairs))
    return "\n\n".join(parts)


def instruments_table(documents: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """Every `test_*` figure of every results file of `instruments.py`, then what others published.

    Args:
        documents: the files' content, in the order of their rows.
        published: the part of `published.json` that is about this data set.
    """
    rows = [row for document in documents for row in _instruments_rows(document)]
    rows += [
        [f"{system['name']} ({system['source']})", "", *(_figure(system.get(metric)) for metric in METRICS), ""]
        for system in published["systems"]
    ]
    return _markdown(["system", "seeds", *METRIC_NAMES.values(), "validation NDCG@10"], rows)


def _instruments_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """A row for each `test_*` part and route that any run has; the validation figure is that of the route."""
    runs, rows = document["runs"], []
    for test in dict.fromkeys(key for run in runs for key in run if key.startswith("test_")):
        for route in dict.fromkeys(route for run in runs for route in run.get(test, {})):
            having = [run for run in runs if route in run.get(test, {})]
            name = ", ".join([document["variant"], _in_words(route), _in_words(test.removeprefix("test_"))])
            seeds = ", ".join(str(run["seed"]) for run in having)
            figures = [_spread_of([run[test][route] for run in having], metric) for metric in METRICS]
            validation = [run.get("validation", {}).get(route, {}) for run in having]
            rows.append([name, seeds, *figures, _spread_of(validation, _HEADLINE)])
    return rows


def _caption(document: Mapping[str, Any]) -> str:
    seeds, machine = document["seeds"], document["machine"]
    target = "Validation" if document["target"] == "validation" else "Test"
    spread = "mean ± standard deviation" if len(seeds) > 1 else "one seed, so no spread"
    return (
        f"`{document['command']}`: {target} targets of {document['num_users']:,} users, {document['num_items']:,} "
        f"items; seeds {', '.join(map(str, seeds))} ({spread}); {machine['threads']} "
        f"thread{'s' * (machine['threads'] > 1)}, {machine['device']}. "
        f"In the last column the paired difference of {_in_words(_SHOWN_WHOLE)}, fused, less the row, with the "
        f"{document['confidence']:.0%} bootstrap interval over users, each user's figure averaged over seeds first."
    )


def _ablation_table(document: Mapping[str, Any], setting: str) -> str:
    target = document["target"]
    validation = [] if target == "validation" else ["validation NDCG@10"]
    head = ["system", *METRIC_NAMES.values(), *validation, "full less this, NDCG@10"]
    rows = []
    for label in _shown(document["systems"]):
        measured = document["systems"][label]
        cells = [_mean(measured[target][setting][metric]) for metric in METRICS]
        cells += [_mean(measured["validation"][setting][_HEADLINE]) for _ in validation]
        rows.append([_in_words(label), *cells, _difference(document, label, setting)])
    return _markdown(head, rows)


def _shown(labels: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The whole method by every route; the others by the fused one, or the only one that they have."""
    return [
        label
        for label in labels
        if label.split("/")[0] == _SHOWN_WHOLE
        or label.endswith("/fused")
        or f"{label.split('/')[0]}/fused" not in labels
    ]


def _difference(document: Mapping[str, Any], label: str, setting: str) -> str:
    for row in document["comparisons"]:
        if _from_full(row) and (row["against"], row["setting"], row["metric"]) == (label, setting, _HEADLINE):
            return _interval(row)
    return ""


def _from_full(row: Mapping[str, Any]) -> bool:
    return bool(row["system"].split("/")[0] == _SHOWN_WHOLE)


def _pair_line(row: Mapping[str, Any]) -> str:
    setting = _SETTINGS[row["setting"]].lower()
    return f"- {_in_words(row['system'])} less {_in_words(row['against'])}, NDCG@10, {setting}: {_interval(row)}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}]"


def _mean(cell: Mapping[str, Any]) -> str:
    return _figure(cell["mean"]) if cell["sd"] is None else f"{_figure(cell['mean'])} ± {_figure(cell['sd'])}"


def _spread_of(runs: Sequence[Mapping[str, float]], metric: str) -> str:
    """The mean of those runs that have the metric; empty if none has."""
    values = [run[metric] for run in runs if metric in run]
    if not values:
        return ""
    return _mean({"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None})


def _figure(value: float | None) -> str:
    """.0123; 1.0000 keeps its one."""
    return "" if value is None else f"{value:.4f}".replace("0.", ".", 1) if value < 1 else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _in_words(name: str) -> str:
    """`no_implicit/fused` -> `no implicit, fused`."""
    return name.replace("/", ", ").replace("_", " ")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)
