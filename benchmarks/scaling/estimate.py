"""Estimate the cost of larger runs, stage by stage, in proportion to the rates that `make bench` measured.

    python -m benchmarks.scaling.estimate

The input is `benchmarks/speed/results/latest.json` and `results/collisions.json`. The output is both tables of
docs/scaling.md, between its markers. Time is in hours of the machine that the rates were measured on (two cores), and
memory is that of one process. No stage is assumed to become more efficient with size; the document says which costs
grow faster than in proportion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.collisions import CODEBOOKS
from benchmarks.scaling.collisions import RESULTS as COLLISIONS
from benchmarks.speed.measuring import ROOT
from benchmarks.speed.run import RESULTS as SPEED

DOCUMENT = ROOT / "docs" / "scaling.md"
# MiniLM and EfficientNet-Lite0, measured in `make demo` with 599 items, including loading the weights.
TEXTS_PER_SECOND, IMAGES_PER_SECOND = 95, 42
EPOCHS, QUANTIZER_EPOCHS, QUANTIZER_SAMPLE = 10, 100, 1_000_000
VECTOR_BYTES = 4 * (384 + 1280)
BYTES_PER_INTERACTION = 25  # while the log is cleaned (docs/performance.md)


@dataclass(frozen=True)
class Shop:
    """The size of a shop: number of items, interactions and users."""

    items: float
    interactions: float
    users: float


SHOPS = {
    "10^6 items, 10^8 interactions, 10^6 users": Shop(1e6, 1e8, 1e6),
    "10^8 items, 10^10 interactions, 10^9 users": Shop(1e8, 1e10, 1e9),
}


def seconds_per_unit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds per row, item, target or user of each stage, from the rows of `latest.json`."""

    def row_of(name: str) -> dict[str, Any]:
        return next(row for row in rows if row["name"].startswith(name))

    cleaning, fitting = row_of("k-core and histories, 100,000,000"), row_of("quantizer training, an epoch, bfloat16")
    assignment, training = (
        row_of("ID assignment from latents, 1,000,000"),
        row_of("recommender training, six tasks, item-causal, bfloat16"),
    )
    decoding = row_of("beam-20 decoding, one route, 4,096 users")
    return {
        "cleaning": cleaning["ours"] / cleaning["size"],
        "quantizer": fitting["ours"] / fitting["size"],
        "ids": assignment["ours"] / assignment["size"],
        "target": training["ours"] / (training["size"] * 5),  # five training targets per user, in all tasks
        "route": decoding["ours"] / decoding["size"],
        "scored": row_of("evaluation, 100,000 users")["ours"] / 1e5,
    }


def stages(shop: Shop, rates: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Return for each stage its seconds, bytes of memory in one process, and bytes of storage."""
    targets = max(shop.interactions - 3 * shop.users, shop.users)
    sample_size = min(shop.items, QUANTIZER_SAMPLE)
    vectors = shop.items * VECTOR_BYTES
    return {
        "cleaning, histories": (
            shop.interactions * rates["cleaning"],
            shop.interactions * BYTES_PER_INTERACTION,
            shop.interactions * 24,
        ),
        "text vectors": (shop.items / TEXTS_PER_SECOND, 1e9, shop.items * 4 * 384),
        "image vectors": (shop.items / IMAGES_PER_SECOND, 1e9, shop.items * 4 * 1280),
        "quantizer": (QUANTIZER_EPOCHS * sample_size * rates["quantizer"], vectors, 2e8),
        "semantic IDs": (shop.items * rates["ids"], vectors, shop.items * 64),
        f"recommender, {EPOCHS} epochs": (EPOCHS * targets * rates["target"], shop.interactions * 8, 5e7),
        "evaluation of 10^5 users": (1e5 * (rates["scored"] + 2 * rates["route"]), 2e9, 1e8),
        "recommendations for all": (2 * shop.users * rates["route"], 1.3e9, shop.users * 320),
    }


def cost_table(rows: list[dict[str, Any]]) -> str:
    """Render hours, memory and storage of each stage at each size; the longest stage is bold."""
    rates = seconds_per_unit(rows)
    columns = [stages(shop, rates) for shop in SHOPS.values()]
    lines = ["| stage | " + " | ".join(SHOPS) + " |", "| --- |" + " --- |" * len(SHOPS)]
    for name in columns[0]:
        cells = []
        for column in columns:
            seconds, memory, stored = column[name]
            text = f"{_hours(seconds)}, {_bytes(memory)}, {_bytes(stored)}"
            cells.append(f"**{text}**" if seconds == max(cost[0] for cost in column.values()) else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = [f"{_hours(sum(cost[0] for cost in column.values()))}" for column in columns]
    return "\n".join([*lines, "| total | " + " | ".join(totals) + " |"])


def collision_table(rows: list[dict[str, Any]]) -> str:
    """Render the collision rate before resolution, by catalogue size and codebooks."""
    rate_of = {(row["num_items"], row["num_levels"], row["codebook_size"]): row["collision_rate"] for row in rows}
    lines = [
        "| items | " + " | ".join(f"{levels} x {size}" for levels, size in CODEBOOKS) + " |",
        "| --- |" + " --- |" * len(CODEBOOKS),
    ]
    for items in sorted({row["num_items"] for row in rows}):
        rates = " | ".join(f"{100 * rate_of[items, levels, size]:.1f}%" for levels, size in CODEBOOKS)
        lines.append(f"| {items:,} | {rates} |")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.2g} GB"


def main() -> None:
    """Update both tables in the document."""
    tables = {
        "costs": cost_table(json.loads((SPEED / "latest.json").read_text(encoding="utf-8"))),
        "collisions": collision_table(json.loads(COLLISIONS.read_text(encoding="utf-8"))),
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables.items():
        section = re.compile(rf"<!-- table:{name} -->\n.*?<!-- /table -->", re.DOTALL)
        text = section.sub(f"<!-- table:{name} -->\n{table}\n<!-- /table -->", text)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
