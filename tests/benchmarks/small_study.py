"""A data set of a few dozen items with random vectors, and settings that train on it in a second."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.ablations import Study, run_study
from benchmarks.accuracy.preparation import Prepared

NUM_ITEMS, NUM_USERS = 40, 50
TINY = (
    "quantizer={num_levels: 2, codebook_size: 8, projection_dim: 8, hidden_dims: [8], latent_dim: 4, num_epochs: 4}",
    "recommender={d_model: 8, d_ff: 8, d_kv: 4, num_heads: 1, num_epochs: 1, batch_size: 64}",
    "decoding={beam_width: 10, top_k: 10}",
    "evaluation={cutoffs: [1, 5, 10], bootstrap_samples: 50}",
    "sasrec={d_model: 8, num_heads: 1, max_epochs: 1}",
    "runtime.device=cpu",
)
SYSTEMS = ("full", "no_implicit", "sasrec", "item_knn", "popularity")


def small_data(*, poisoned: bool = False) -> Prepared:
    """Create users who walk through the catalogue in cycles; `poisoned` replaces the last item of each history."""
    generator = np.random.default_rng(5)
    histories = []
    for user in range(NUM_USERS):
        history = (np.arange(generator.integers(5, 9)) + user) % NUM_ITEMS
        histories.append(np.append(history[:-1], (history[-1] + 17 * poisoned) % NUM_ITEMS).astype(np.int64))
    vectors = generator.normal(size=(2, NUM_ITEMS, 6)).astype(np.float32)
    return Prepared(histories, vectors[0], vectors[1])


def small_study(**changes: Any) -> Study:
    """Create a study with one seed, a few systems and one thread."""
    return Study(**({"dataset": "demo", "systems": SYSTEMS, "overrides": TINY, "threads": 1} | changes))


def run_small(work: Path, *, poisoned: bool = False, **changes: Any) -> dict[str, Any]:
    """Run the small study, and return the results document without measured times."""
    document = run_study(small_study(**changes), small_data(poisoned=poisoned), work=work)
    for run in document["runs"]:
        del run["seconds"]
    return document
