"""The method beside itself without each of its parts, beside other methods, and beside plain baselines.

    python benchmarks/accuracy/ablations.py demo --seeds 1 2 3
    python benchmarks/accuracy/ablations.py movielens-100k --data ../shared/data --seeds 1 2 3

Any data set with texts and pictures. It is prepared once; then each variant of `variants.py` is trained under each seed
by the pipeline's own stages, and ranks the full catalogue for every user. Writes `results/ablations-<data set>.json`
and prints its tables; `tables.py` puts them into docs/results.md. Everything finished is kept in the work folder, so a
command that is cut off goes on where it was when it is repeated.

Nothing is fitted or ranked with a test item at hand: test targets are looked up in the finished lists at the end, and
with `--validation-only`, for choosing settings, not at all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above `benchmarks` takes the place of this file's own
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.accuracy.baselines import baseline_lists
from benchmarks.accuracy.measuring import Run, measure
from benchmarks.accuracy.preparation import Prepared, prepare
from benchmarks.accuracy.rendering import table
from benchmarks.accuracy.trained import HIDDEN, variant_lists
from benchmarks.accuracy.variants import AS_PUBLISHED, BASELINES, DETERMINISTIC, FULL, SYSTEMS, VARIANTS
from macrec_pipeline.config import PipelineConfig, RecommenderConfig
from macrec_pipeline.datasets import DemoSource, load_dataset
from macrec_pipeline.errors import ConfigError, MacrecError
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.recommender.model.vocabulary import HISTORY_TASKS
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress, quiet_progress

BOOTSTRAP_SEED = 20260
_VERSIONS_OF = ("macrec_pipeline", "torch", "transformers", "numpy", "faiss-cpu", "polars")


@dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        dataset: a data set with texts and pictures.
        systems: names of `variants.SYSTEMS`.
        seeds: one run of each system that draws anything, a seed.
        overrides: `section.field=value`, laid over the data set's settings and below the variant's own.
        threads: of the CPU; part of reproducibility.
        validation_only: leave the test targets alone.
    """

    dataset: str
    systems: tuple[str, ...] = SYSTEMS
    seeds: tuple[int, ...] = (1,)
    overrides: tuple[str, ...] = ()
    threads: int = 2
    validation_only: bool = False

    def config(self, system: str, seed: int) -> PipelineConfig:
        """The resolved settings of one run. Raises `ConfigError`."""
        own = [*VARIANTS.get(system, ()), f"runtime.num_threads={self.threads}", f"seed={seed}"]
        changes = [*AS_PUBLISHED, *self.overrides, *own]
        spec = load_dataset(self.dataset)
        config = spec.config(parse_overrides(changes))
        whole = spec.config(parse_overrides(self.overrides)).recommender
        # a variant with fewer tasks has as many steps and as many targets of each task in a step as the whole method
        share = config.recommender.batch_size * _num_history_tasks(config.recommender) // _num_history_tasks(whole)
        return spec.config(parse_overrides([*changes, f"recommender.batch_size={share}"]))

    def check(self) -> None:
        """Resolve every run's settings before the first one starts.

        Raises:
            ConfigError: an unknown system, no seed, or settings that are refused; names the system.
        """
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise ConfigError(f"There is no variant {', '.join(unknown) or 'named'}. Use: {', '.join(SYSTEMS)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds got {list(self.seeds)}; it needs one seed or more, each once.")
        for system in self.systems:
            try:
                self.config(system, self.seeds[0])
            except ConfigError as error:
                raise type(error)(f"{system}: {error}") from None


def _num_history_tasks(config: RecommenderConfig) -> int:
    """Tasks among which a step's targets are shared out."""
    return sum(task in HISTORY_TASKS for task in config.tasks)


def run_study(study: Study, prepared: Prepared, *, work: Path, progress: Progress = quiet_progress) -> dict[str, Any]:
    """Train what is not finished yet, then measure all of it.

    Args:
        study: what to run; checked here.
        prepared: the data set.
        work: folder of what is finished.

    Returns:
        The results document: for a study that was cut off and repeated the same, but for the seconds of what was
        trained anew.
    """
    study.check()
    runs = [
        _run(study, system, seed, prepared, work=work, progress=progress)
        for seed in study.seeds
        for system in study.systems
        if system not in DETERMINISTIC or seed == study.seeds[0]
    ]
    runs.sort(key=lambda run: SYSTEMS.index(run.system))
    plain = study.config(FULL, study.seeds[0])
    targets = ("validation",) if study.validation_only else tuple(HIDDEN)
    return {
        "dataset": study.dataset,
        "command": _command(study),
        "target": targets[-1],
        "num_users": len(prepared.histories),
        "num_items": prepared.num_items,
        "seeds": list(study.seeds),
        "settings": plain.model_dump(mode="json", exclude={"seed"}),
        "variants": {name: list(VARIANTS[name]) for name in study.systems if name in VARIANTS},
        "confidence": plain.evaluation.confidence,
        "bootstrap_samples": plain.evaluation.bootstrap_samples,
        "machine": _machine(plain, study),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS_OF},
        **measure(runs, prepared.histories, targets=targets, config=plain.evaluation, seed=BOOTSTRAP_SEED),
    }


def _run(study: Study, system: str, seed: int, prepared: Prepared, *, work: Path, progress: Progress) -> Run:
    print(f"{time.strftime('%H:%M:%S')} {study.dataset}: {system}, seed {seed}", file=sys.stderr, flush=True)
    make = baseline_lists if system in BASELINES else variant_lists
    found = make(system, prepared, study.config(system, seed), work=work, progress=progress)
    return Run(system, None if system in DETERMINISTIC else seed, found.arrays, found.facts)


def _command(study: Study) -> str:
    """The command that repeats this, without folders."""
    words = ["python benchmarks/accuracy/ablations.py", study.dataset]
    words += [] if isinstance(load_dataset(study.dataset).source, DemoSource) else ["--data DIR"]
    words += ["--seeds", *map(str, study.seeds)]
    words += [] if study.systems == SYSTEMS else ["--variants", *study.systems]
    words += [word for setting in study.overrides for word in ("--set", shlex.quote(setting))]
    words += ["--threads", str(study.threads)] if study.threads != Study.threads else []
    words += ["--validation-only"] if study.validation_only else []
    return " ".join(words)


def _machine(config: PipelineConfig, study: Study) -> Mapping[str, Any]:
    device = prepare_device(config.runtime)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "kind": kind, "cores": os.cpu_count(), "threads": study.threads}


def write_document(document: Mapping[str, Any], folder: Path) -> Path:
    """Replace the results file of the document's data set, and return its path."""
    suffix = "-validation" if document["target"] == "validation" else ""
    path = folder / f"ablations-{document['dataset']}{suffix}.json"
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _show(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    if total and (4 * done) // total > (4 * (done - 1)) // total:
        values = " ".join(f"{name}={value:.4g}" for name, value in (metrics or {}).items())
        print(f"{time.strftime('%H:%M:%S')}   {stage} {done}/{total} {values}".rstrip(), file=sys.stderr, flush=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="a data set with texts and pictures, as in datasets/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that the data set's files are in")
    parser.add_argument("--work", type=Path, default=Path(".macrec/benchmarks"), help="folder of what is finished")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=Study.threads)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="as in macrec run")
    parser.add_argument("--validation-only", action="store_true", help="for choosing settings: no test target is read")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run a study, write its results file and print its tables; one line and status 2 for what a person did wrong."""
    asked = _arguments(words)
    study = Study(
        asked.dataset,
        systems=tuple(name for name in SYSTEMS if name in asked.variants)
        + tuple(name for name in asked.variants if name not in SYSTEMS),
        seeds=tuple(asked.seeds),
        overrides=tuple(asked.set),
        threads=asked.threads,
        validation_only=asked.validation_only,
    )
    work = asked.work / f"ablations-{asked.dataset}"
    try:
        spec = load_dataset(study.dataset)
        study.check()
        config = study.config(FULL, study.seeds[0])
        prepared = prepare(spec, config, data=asked.data.absolute(), work=work, progress=_show)
        document = run_study(study, prepared, work=work, progress=_show)
    except MacrecError as error:
        print(f"ablations: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    path = write_document(document, asked.out)
    print(f"{table(document)}\n\n{path}")


if __name__ == "__main__":
    main()
