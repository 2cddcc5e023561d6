"""Measure the gain of a second worker for embedding texts and for recommending, with one thread per worker.

    python -m benchmarks.scaling.drivers [--ray]

The command prints a table of seconds, including the start of the workers: the minimum and the maximum over several
turns of all drivers, and the minimum of the processor time, which other load on the machine hardly affects. Texts are
generated (about 40 tokens each) for the packaged encoder. The recommender is the published one with random weights,
6,250 items, both routes and a beam width of 20. All drivers must give the same bytes.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.speed.shop import CODEBOOK_SIZE, ITEMS, PUBLISHED, random_model, read_log, write_log
from macrec_pipeline.config import DecodingConfig, RuntimeConfig, TextEncoderConfig
from macrec_pipeline.defs.sharded_tasks import RecommendationTask
from macrec_pipeline.embeddings import cache, embed_texts
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import quiet_progress
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage import write_shards

TEXTS, TEXTS_PER_SHARD = 4_096, 256
USERS, USERS_PER_SHARD = 3_072, 128
TURNS = 3
_USAGE_OF = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
WORDS = ["guitar", "string", "steel", "wound", "nickel", "light", "gauge", "maple", "neck"]
CPU = torch.device("cpu")


def main() -> None:
    """Measure every driver in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ray", action="store_true", help="also measure two Ray workers")
    drivers = [("in_process", 1), ("processes", 1), ("processes", 2), *[("ray", 2)] * parser.parse_args().ray]
    prepare_device(_runtime("in_process", 1))
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(Path(folder))
        stages: dict[str, Callable[[Path, RuntimeConfig], bytes]] = {
            f"{TEXTS:,} texts": _embed,
            f"recommendations for {USERS:,} users": lambda scratch, runtime: _recommend(bundle, scratch, runtime),
        }
        print("| | " + " | ".join(f"{driver}, {workers}" for driver, workers in drivers) + " |")
        print("| --- |" + " --- |" * len(drivers))
        for name, run in stages.items():
            seconds: dict[tuple[str, int], list[tuple[float, float]]] = {setting: [] for setting in drivers}
            results: set[bytes] = set()
            for turn in range(TURNS):
                for setting in drivers[turn % len(drivers) :] + drivers[: turn % len(drivers)]:
                    scratch = Path(folder) / "scratch"
                    start, cpu_start = time.perf_counter(), _processor_seconds()
                    results.add(run(scratch, _runtime(*setting)))
                    seconds[setting].append((time.perf_counter() - start, _processor_seconds() - cpu_start))
                    shutil.rmtree(scratch)
            assert len(results) == 1, "the drivers give different bytes"
            print(f"| {name} | " + " | ".join(map(_cell, seconds.values())) + " |", flush=True)


def _cell(turns: list[tuple[float, float]]) -> str:
    wall, cpu = zip(*turns, strict=True)
    return f"{min(wall):.0f} to {max(wall):.0f} s, processor {min(cpu):.0f} s"


def _processor_seconds() -> float:
    """Return the processor time of this process and its finished workers; Ray's workers are not its children."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _USAGE_OF))


def _runtime(driver: str, workers: int) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"device": "cpu", "num_threads": 1, "driver": driver, "workers": workers})


def _embed(scratch: Path, runtime: RuntimeConfig) -> bytes:
    cache.SHARD_SIZE = TEXTS_PER_SHARD
    words = np.random.default_rng(1).choice(WORDS, (TEXTS, 40))
    texts = [" ".join([*row, str(number)]) for number, row in enumerate(words)]
    return embed_texts(
        texts, TextEncoderConfig(), device=CPU, progress=quiet_progress, shard_folder=scratch, runtime=runtime
    ).vectors.tobytes()


def _bundle(folder: Path) -> RecommendationTask:
    for name in ("weights", "bundle"):
        (folder / name).mkdir()
    write_log(folder, users=USERS)
    histories, codes = read_log(folder)
    FittedRecommender(random_model(PUBLISHED), vars(PUBLISHED), [], 1).save(folder / "weights")
    item_ids = [f"i{item}" for item in range(ITEMS)]
    RecommenderBundle.write(
        folder / "bundle",
        recommender_folder=folder / "weights",
        item_ids=item_ids,
        popularity=np.ones(ITEMS, dtype=np.int64),
        text_codes=codes["text"],
        image_codes=codes["image"],
        codebook_size=CODEBOOK_SIZE,
        decoding=DecodingConfig(beam_width=20).model_dump(mode="json"),
        catalogue=[{"title": "", "image_path": None}] * ITEMS,
        provenance={},
    )
    pl.DataFrame({"item_id": item_ids}).write_parquet(folder / "items.parquet")
    users = {
        "user_id": [f"u{user}" for user in range(USERS)],
        "item_ids": [[item_ids[item] for item in history] for history in histories],
    }
    pl.DataFrame(users).write_parquet(folder / "histories.parquet")
    return RecommendationTask(
        folder / "bundle",
        folder / "histories.parquet",
        folder / "items.parquet",
        model="models:/random/1",
        as_of=0,
        top_k=20,
        exclude_seen=False,
    )


def _recommend(task: RecommendationTask, scratch: Path, runtime: RuntimeConfig) -> bytes:
    shards = write_shards(
        scratch,
        RECOMMENDATIONS,
        task,
        num_rows=USERS,
        rows_per_shard=USERS_PER_SHARD,
        depends_on={},
        runtime=runtime,
        device=CPU,
    )
    return b"".join(shard.read_bytes() for shard in shards)


if __name__ == "__main__":
    main()
