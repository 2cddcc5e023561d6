"""Compare the method with variants that lack one of its parts, with other methods, and with simple baselines.

    python benchmarks/accuracy/ablations.py demo --seeds 1 2 3
    python benchmarks/accuracy/ablations.py movielens-100k --data ../shared/data --seeds 1 2 3

The data set can be any with texts and images. It is prepared once. Then each variant of `variants.py` is trained with
each seed by the pipeline's own stages, and ranks the full catalogue for every user. The command writes
`results/ablations-<data set>.json` and prints its tables; `tables.py` copies them into docs/results.md. Finished
results are cached in the work folder, so an interrupted command continues where it stopped when it is repeated.

Nothing is fitted or ranked with access to a test item: test targets are looked up in the finished lists at the end.
With `--validation-only`, which is meant for choosing settings, they are not read at all.
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

if not __package__:  # run as a script: import from the repository, not from this file's folder
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
from macrec_pipeline.recommender.model.history_encoding import HISTORY_TASKS
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress, quiet_progress

BOOTSTRAP_SEED = 20260
_VERSIONS_OF = ("macrec_pipeline", "torch", "transformers", "numpy", "faiss-cpu", "polars")


@dataclass(frozen=True)
class Study:
    """What to train and compare.

    Attributes:
        dataset: name of a data set with texts and images.
        systems: names of `variants.SYSTEMS`.
        seeds: one run per seed of each system that draws random numbers.
        overrides: `section.field=value`. They override the data set's settings; a variant's own settings override them.
        threads: number of CPU threads; results are reproducible for a fixed number.
        validation_only: do not read the test targets.
    """

    dataset: str
    systems: tuple[str, ...] = SYSTEMS
    seeds: tuple[int, ...] = (1,)
    overrides: tuple[str, ...] = ()
    threads: int = 2
    validation_only: bool = False

    def config(self, system: str, seed: int) -> PipelineConfig:
        """Resolve the settings of one run. Raise `ConfigError` if they are invalid."""
        variant = [*VARIANTS.get(system, ()), f"runtime.num_threads={self.threads}", f"seed={seed}"]
        changes = [*AS_PUBLISHED, *self.overrides, *variant]
        spec = load_dataset(self.dataset)
        config = spec.config(parse_overrides(changes))
        full = spec.config(parse_overrides(self.overrides)).recommender
        # a variant with fewer tasks has the same number of steps, and of targets per task and step, as the full method
        batch_size = config.recommender.batch_size * _num_history_tasks(config.recommender) // _num_history_tasks(full)
        return spec.config(parse_overrides([*changes, f"recommender.batch_size={batch_size}"]))

    def check(self) -> None:
        """Resolve every run's settings before the first one starts.

        Raises:
            ConfigError: a system is unknown, there is no seed, or settings are invalid. The message names the system.
        """
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise ConfigError(
                f"Unknown variants: {', '.join(unknown) or 'none given'}. Choose from {', '.join(SYSTEMS)}."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"`--seeds` is {list(self.seeds)}, but must be at least one seed, without repeats.")
        for system in self.systems:
            try:
                self.config(system, self.seeds[0])
            except ConfigError as error:
                raise type(error)(f"{system}: {error}") from None


def _num_history_tasks(config: RecommenderConfig) -> int:
    """Count the tasks among which the targets of a step are divided."""
    return sum(task in HISTORY_TASKS for task in config.tasks)


def run_study(study: Study, prepared: Prepared, *, work: Path, progress: Progress = quiet_progress) -> dict[str, Any]:
    """Train everything that is not finished yet, then evaluate all runs.

    Args:
        study: what to run; validated here.
        prepared: the data set.
        work: folder of finished results.

    Returns:
        The results document. An interrupted and repeated study gives the same document, except for the seconds.
    """
    study.check()
    runs = [
        _run(study, system, seed, prepared, work=work, progress=progress)
        for seed in study.seeds
        for system in study.systems
        if system not in DETERMINISTIC or seed == study.seeds[0]
    ]
    runs.sort(key=lambda run: SYSTEMS.index(run.system))
    config = study.config(FULL, study.seeds[0])
    targets = ("validation",) if study.validation_only else tuple(HIDDEN)
    return {
        "dataset": study.dataset,
        "command": _command(study),
        "target": targets[-1],
        "num_users": len(prepared.histories),
        "num_items": prepared.num_items,
        "seeds": list(study.seeds),
        "settings": config.model_dump(mode="json", exclude={"seed"}),
        "variants": {name: list(VARIANTS[name]) for name in study.systems if name in VARIANTS},
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "machine": _machine(config, study),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS_OF},
        **measure(runs, prepared.histories, targets=targets, config=config.evaluation, seed=BOOTSTRAP_SEED),
    }


def _run(study: Study, system: str, seed: int, prepared: Prepared, *, work: Path, progress: Progress) -> Run:
    print(f"{time.strftime('%H:%M:%S')} {study.dataset}: {system}, seed {seed}", file=sys.stderr, flush=True)
    compute = baseline_lists if system in BASELINES else variant_lists
    result = compute(system, prepared, study.config(system, seed), work=work, progress=progress)
    return Run(system, None if system in DETERMINISTIC else seed, result.arrays, result.facts)


def _command(study: Study) -> str:
    """Return the command that repeats the study, without its folders."""
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
    """Replace the results file of the data set, and return its path."""
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
    parser.add_argument("dataset", help="a data set with texts and images, as in datasets/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set's files")
    parser.add_argument("--work", type=Path, default=Path(".macrec/benchmarks"), help="folder of finished results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=Study.threads)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="as in macrec run")
    parser.add_argument(
        "--validation-only", action="store_true", help="do not read test targets; for choosing settings"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run a study, write its results file and print its tables. Known errors are one line on stderr and status 2."""
    arguments = _arguments(words)
    study = Study(
        arguments.dataset,
        systems=tuple(name for name in SYSTEMS if name in arguments.variants)
        + tuple(name for name in arguments.variants if name not in SYSTEMS),
        seeds=tuple(arguments.seeds),
        overrides=tuple(arguments.set),
        threads=arguments.threads,
        validation_only=arguments.validation_only,
    )
    work = arguments.work / f"ablations-{arguments.dataset}"
    try:
        spec = load_dataset(study.dataset)
        study.check()
        config = study.config(FULL, study.seeds[0])
        prepared = prepare(spec, config, data=arguments.data.absolute(), work=work, progress=_show)
        document = run_study(study, prepared, work=work, progress=_show)
    except MacrecError as error:
        print(f"ablations: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    path = write_document(document, arguments.out)
    print(f"{table(document)}\n\n{path}")


if __name__ == "__main__":
    main()
