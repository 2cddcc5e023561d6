"""Markdown tables of results files: one of `ablations.py` or `ties.py`, or all of `instruments.py` with published ones.

The input is the parsed JSON documents, the output is text without a trailing newline. Values are means, with a standard
deviation if there are several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("hr_1", "hr_5", "hr_10", "ndcg_5", "ndcg_10")
METRIC_NAMES = {"hr_1": "HR@1", "hr_5": "HR@5", "hr_10": "HR@10", "ndcg_5": "NDCG@5", "ndcg_10": "NDCG@10"}
_SETTINGS = {"seen_allowed": "Seen items allowed", "seen_excluded": "Seen items excluded"}
_FULL = "full"
_HEADLINE = "ndcg_10"


def table(document: Mapping[str, Any]) -> str:
    """Render a results file of `ablations.py`: a caption, then one table per setting."""
    parts = [_caption(document)]
    for setting, title in _SETTINGS.items():
        parts += [f"{title}:", _ablation_table(document, setting)]
    pairs = [row for row in document["comparisons"] if not _from_full(row) and row["metric"] == _HEADLINE]
    if pairs:
        parts.append("\n".join(_pair_line(row) for row in pairs))
    return "\n\n".join(parts)


def instruments_table(documents: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """Render all `test_*` results of `instruments.py`, then the results that others published.

    Args:
        documents: content of the results files, in the order of their rows.
        published: the part of `published.json` about this data set.
    """
    rows = [row for document in documents for row in _instruments_rows(document)]
    rows += [
        [f"{system['name']} ({system['source']})", "", *(_number(system.get(metric)) for metric in METRICS), ""]
        for system in published["systems"]
    ]
    return _markdown(["system", "seeds", *METRIC_NAMES.values(), "validation NDCG@10"], rows)


def ties_table(document: Mapping[str, Any]) -> str:
    """Render a results file of `ties.py`: a caption, then one row per system and tie rule."""
    cells = {(row["system"], row["ties"], row["setting"], row["metric"]): _mean(row) for row in document["rows"]}
    columns = [(setting, metric) for setting in _SETTINGS for metric in ("hr_10", "ndcg_10")]
    has_determined = any(row["metric"].endswith("_determined") for row in document["rows"])
    if has_determined:
        columns += [(setting, "ndcg_10_determined") for setting in _SETTINGS]
    names = {"hr_10": "HR@10", "ndcg_10": "NDCG@10", "ndcg_10_determined": "NDCG@10, determined targets"}
    head = [f"{names[metric]}, {_SETTINGS[setting].lower().removeprefix('seen items ')}" for setting, metric in columns]
    rows = [
        [_in_words(system), f"`{rule}`", *(cells[system, rule, setting, metric] for setting, metric in columns)]
        for system, rule in dict.fromkeys((row["system"], row["ties"]) for row in document["rows"])
    ]
    seeds = document["seeds"]
    spread = "mean ± standard deviation" if len(seeds) > 1 else "one seed, no spread"
    caption = (
        f"`{document['command']}`: {document['users']:,} users, {document['items']:,} items; "
        f"{document['tied_share']:.1%} of the interactions share user and time with another one, and for "
        f"{document['undetermined_targets']:,} users several items have the time of the test target; seeds "
        f"{', '.join(map(str, seeds))} ({spread})."
    )
    return f"{caption}\n\n{_markdown(['system', 'ties', *head], rows)}"


def _instruments_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Render a row for each `test_*` part and route of any run, with the validation NDCG of the same route."""
    runs, rows = document["runs"], []
    for test in dict.fromkeys(key for run in runs for key in run if key.startswith("test_")):
        for route in dict.fromkeys(route for run in runs for route in run.get(test, {})):
            with_route = [run for run in runs if route in run.get(test, {})]
            name = ", ".join([document["variant"], _in_words(route), _in_words(test.removeprefix("test_"))])
            seeds = ", ".join(str(run["seed"]) for run in with_route)
            cells = [_mean_of_runs([run[test][route] for run in with_route], metric) for metric in METRICS]
            validation = [run.get("validation", {}).get(route, {}) for run in with_route]
            rows.append([name, seeds, *cells, _mean_of_runs(validation, _HEADLINE)])
    return rows


def _caption(document: Mapping[str, Any]) -> str:
    seeds, machine = document["seeds"], document["machine"]
    target = "Validation" if document["target"] == "validation" else "Test"
    spread = "mean ± standard deviation" if len(seeds) > 1 else "one seed, no spread"
    return (
        f"`{document['command']}`: {target} targets of {document['num_users']:,} users, {document['num_items']:,} "
        f"items; seeds {', '.join(map(str, seeds))} ({spread}); {machine['threads']} "
        f"thread{'s' * (machine['threads'] > 1)}, {machine['device']}. "
        f"The last column is the paired difference of {_in_words(_FULL)}, fused, minus the row, with the "
        f"{document['confidence']:.0%} bootstrap interval over users; each user's metric is averaged over seeds first."
    )


def _ablation_table(document: Mapping[str, Any], setting: str) -> str:
    target = document["target"]
    validation = [] if target == "validation" else ["validation NDCG@10"]
    head = ["system", *METRIC_NAMES.values(), *validation, "full minus this, NDCG@10"]
    rows = []
    for label in _shown_labels(document["systems"]):
        results = document["systems"][label]
        cells = [_mean(results[target][setting][metric]) for metric in METRICS]
        cells += [_mean(results["validation"][setting][_HEADLINE]) for _ in validation]
        rows.append([_in_words(label), *cells, _difference(document, label, setting)])
    return _markdown(head, rows)


def _shown_labels(labels: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Select every route of the full method, and the fused or only route of the other systems."""
    return [
        label
        for label in labels
        if label.split("/")[0] == _FULL or label.endswith("/fused") or f"{label.split('/')[0]}/fused" not in labels
    ]


def _difference(document: Mapping[str, Any], label: str, setting: str) -> str:
    for row in document["comparisons"]:
        if _from_full(row) and (row["against"], row["setting"], row["metric"]) == (label, setting, _HEADLINE):
            return _interval(row)
    return ""


def _from_full(row: Mapping[str, Any]) -> bool:
    return bool(row["system"].split("/")[0] == _FULL)


def _pair_line(row: Mapping[str, Any]) -> str:
    setting = _SETTINGS[row["setting"]].lower()
    return f"- {_in_words(row['system'])} minus {_in_words(row['against'])}, NDCG@10, {setting}: {_interval(row)}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}]"


def _mean(cell: Mapping[str, Any]) -> str:
    return _number(cell["mean"]) if cell["sd"] is None else f"{_number(cell['mean'])} ± {_number(cell['sd'])}"


def _mean_of_runs(runs: Sequence[Mapping[str, float]], metric: str) -> str:
    """Render the mean over the runs that have the metric; empty if none has it."""
    values = [run[metric] for run in runs if metric in run]
    if not values:
        return ""
    return _mean({"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None})


def _number(value: float | None) -> str:
    """Render a metric without the leading zero, as in .0123; 1.0000 stays as it is."""
    return "" if value is None else f"{value:.4f}".replace("0.", ".", 1) if value < 1 else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _in_words(name: str) -> str:
    """Turn `no_implicit/fused` into `no implicit, fused`."""
    return name.replace("/", ", ").replace("_", " ")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)
