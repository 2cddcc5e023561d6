"""What a run costs at sizes that were not run: the measured rates of `make bench`, in proportion, stage by stage.

    python -m benchmarks.scaling.estimate

In: `benchmarks/speed/results/latest.json` and `results/collisions.json`. Out: both tables of docs/scaling.md, between
its markers. Time is in hours of the machine that the rates were measured on (two cores), memory is of one process.
Nothing is assumed to get better with size; what grows faster than in proportion is said in the document.
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
# Measured in `make demo` (599 items: 6.3 s and 14.3 s, loading the weights included): MiniLM and EfficientNet-Lite0.
TEXTS_A_SECOND, PICTURES_A_SECOND = 95, 42
EPOCHS, QUANTIZER_EPOCHS, QUANTIZER_SAMPLE = 10, 100, 1_000_000
VECTOR_BYTES = 4 * (384 + 1280)
ROW_BYTES = 25  # of an interaction while the log is cleaned: docs/performance.md


@dataclass(frozen=True)
class Shop:
    """A size: N items, interactions, users."""

    items: float
    interactions: float
    users: float


SHOPS = {
    "10^6 items, 10^8 interactions, 10^6 users": Shop(1e6, 1e8, 1e6),
    "10^8 items, 10^10 interactions, 10^9 users": Shop(1e8, 1e10, 1e9),
}


def seconds_a_unit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of one row, item, target or user in each stage, from the rows of `latest.json`."""

    def of(name: str) -> dict[str, Any]:
        return next(row for row in rows if row["name"].startswith(name))

    cleaning, fitting = of("k-core and histories, 100,000,000"), of("quantizer training, an epoch, bfloat16")
    placing, training = (
        of("ID assignment from latents, 1,000,000"),
        of("recommender training, six tasks, item-causal, bfloat16"),
    )
    decoding = of("beam-20 decoding, one route, 4,096 users")
    return {
        "cleaning": cleaning["ours"] / cleaning["size"],
        "quantizer": fitting["ours"] / fitting["size"],
        "ids": placing["ours"] / placing["size"],
        "target": training["ours"] / (training["size"] * 5),  # five training targets a user, in all tasks
        "route": decoding["ours"] / decoding["size"],
        "scored": of("evaluation, 100,000 users")["ours"] / 1e5,
    }


def stages(shop: Shop, rates: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Stage -> seconds, bytes of memory in one process, bytes stored."""
    targets = max(shop.interactions - 3 * shop.users, shop.users)
    sampled = min(shop.items, QUANTIZER_SAMPLE)
    vectors = shop.items * VECTOR_BYTES
    return {
        "cleaning, histories": (
            shop.interactions * rates["cleaning"],
            shop.interactions * ROW_BYTES,
            shop.interactions * 24,
        ),
        "text vectors": (shop.items / TEXTS_A_SECOND, 1e9, shop.items * 4 * 384),
        "picture vectors": (shop.items / PICTURES_A_SECOND, 1e9, shop.items * 4 * 1280),
        "quantizer": (QUANTIZER_EPOCHS * sampled * rates["quantizer"], vectors, 2e8),
        "semantic IDs": (shop.items * rates["ids"], vectors, shop.items * 64),
        f"recommender, {EPOCHS} epochs": (EPOCHS * targets * rates["target"], shop.interactions * 8, 5e7),
        "evaluation of 10^5 users": (1e5 * (rates["scored"] + 2 * rates["route"]), 2e9, 1e8),
        "recommendations for all": (2 * shop.users * rates["route"], 1.3e9, shop.users * 320),
    }


def cost_table(rows: list[dict[str, Any]]) -> str:
    """Hours, memory and storage of each stage at each size, the longest one marked."""
    rates = seconds_a_unit(rows)
    columns = [stages(shop, rates) for shop in SHOPS.values()]
    lines = ["| stage | " + " | ".join(SHOPS) + " |", "| --- |" + " --- |" * len(SHOPS)]
    for name in columns[0]:
        cells = []
        for column in columns:
            seconds, memory, stored = column[name]
            text = f"{_hours(seconds)}, {_bytes(memory)}, {_bytes(stored)}"
            cells.append(f"**{text}**" if seconds == max(found[0] for found in column.values()) else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = [f"{_hours(sum(found[0] for found in column.values()))}" for column in columns]
    return "\n".join([*lines, "| together | " + " | ".join(totals) + " |"])


def collision_table(rows: list[dict[str, Any]]) -> str:
    """Collision rate before it is resolved, by catalogue and codebooks."""
    found = {(row["num_items"], row["num_levels"], row["codebook_size"]): row["collision_rate"] for row in rows}
    lines = [
        "| items | " + " | ".join(f"{levels} x {size}" for levels, size in CODEBOOKS) + " |",
        "| --- |" + " --- |" * len(CODEBOOKS),
    ]
    for items in sorted({row["num_items"] for row in rows}):
        rates = " | ".join(f"{100 * found[items, levels, size]:.1f}%" for levels, size in CODEBOOKS)
        lines.append(f"| {items:,} | {rates} |")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.2g} GB"


def main() -> None:
    """Write both tables into the document."""
    tables = {
        "costs": cost_table(json.loads((SPEED / "latest.json").read_text(encoding="utf-8"))),
        "collisions": collision_table(json.loads(COLLISIONS.read_text(encoding="utf-8"))),
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, made in tables.items():
        marked = re.compile(rf"<!-- table:{name} -->\n.*?<!-- /table -->", re.DOTALL)
        text = marked.sub(f"<!-- table:{name} -->\n{made}\n<!-- /table -->", text)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
