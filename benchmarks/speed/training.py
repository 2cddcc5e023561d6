"""An epoch of the recommender's training on all six tasks, with the published model, on a small log like Instruments'.

Ours contains all of a training up to its last step: making the model and the batches. The loss of the validation
targets, which would follow, is left out, since the baseline has none. The exact objective reads each sample anew, as
published; the item-causal one reads a history once and decodes all its targets from it. The baseline does for every
step what a Trainer does and no more: transformers' own T5 with a text vocabulary, batches of samples in random order
padded to the longest, loss, backward, clipping, AdamW. All train the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from benchmarks.speed.shop import CODEBOOK_SIZE, LEVELS, PUBLISHED, SMALL, a_model, as_text_model, read_log, write_log
from macrec_pipeline.config import RecommenderConfig, RuntimeConfig
from macrec_pipeline.recommender.model.vocabulary import ALIGNMENT_TASKS, HISTORY_TASKS
from macrec_pipeline.recommender.training.batching import training_rows
from macrec_pipeline.recommender.training.fit import fit_recommender
from macrec_pipeline.runtime.devices import prepare_device

# Samples a step of the baseline, which keeps what a step made until its backward pass; ours has the published 4,096.
_BASELINE_BATCH = 128
_IGNORED = -100
_ITEMS_A_USER = 6_250 / 17_112
Encoding = Literal["exact", "item_causal"]
Precision = Literal["float32", "bfloat16"]
_TARGETS: dict[Encoding, float] = {"exact": 8, "item_causal": 20}

_WHY_NOT: dict[Precision, str] = {
    "float32": "products of matrices alone would take the roofline's share of the time, the rest is passes over memory "
    "between them, of half the bytes in bfloat16: see the row for that, whose results differ by less than a seed's",
    "bfloat16": "where products in bfloat16 are not several times as fast as in float32 they take 44% of the time "
    "and more; what is left is passes over memory between them",
}


class _Trained(Exception):  # noqa: N818 - no error: the steps are done, and what would follow is not timed
    """Raised after the last step."""


def cases() -> list[Case]:
    """The table."""
    return [
        _case(
            320,
            encoding,
            precision=precision,
            target=target,
            by_ratio=True,
            repeats=3,
            baseline_repeats=1,
            why_not=why_not,
        )
        for encoding, target in _TARGETS.items()
        for precision, why_not in _WHY_NOT.items()
    ]


def growing() -> list[Case]:
    """The cost by users."""
    return [_case(users, "item_causal", repeats=2, baseline_repeats=0) for users in (160, 640, 2_560)]


def tiny() -> list[Case]:
    """For the tests."""
    return [
        _case(20, encoding, precision=precision, config=SMALL, repeats=1, baseline_repeats=1)
        for encoding in _TARGETS
        for precision in ("float32", "bfloat16")
    ]


def _ours(folder: Path, config: RecommenderConfig) -> Timed:
    histories, codes = read_log(folder)
    device = prepare_device(RuntimeConfig(device="cpu", num_threads=torch.get_num_threads()))

    def stop_after_the_last(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done == total:
            raise _Trained

    def run() -> int:
        with suppress(_Trained):
            fit_recommender(
                histories,
                *codes.values(),
                codebook_size=CODEBOOK_SIZE,
                config=config,
                seed=1,
                device=device,
                progress=stop_after_the_last,
            )
        rows = training_rows([history[:-2] for history in histories], config)
        return rows.num_targets * len(HISTORY_TASKS) + len(codes["text"]) * len(ALIGNMENT_TASKS)

    return run


def _padded_batches(folder: Path, config: RecommenderConfig) -> Timed:
    histories, codes = read_log(folder)
    ours = a_model(config)
    model = as_text_model(ours).train()
    tokens = {name: ours.vocabulary.item_tokens(torch.from_numpy(codes[name]), modality=name) for name in codes}
    samples = _samples(histories, tokens, ours.vocabulary.prompt, history_length=config.history_length)

    def run() -> int:
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        for chosen in np.array_split(
            np.random.default_rng(0).permutation(len(samples)), -(-len(samples) // _BASELINE_BATCH)
        ):
            read = pad_sequence([samples[place][0] for place in chosen], batch_first=True)
            written = pad_sequence([samples[place][1] for place in chosen], batch_first=True, padding_value=_IGNORED)
            optimizer.zero_grad()
            model(input_ids=read, attention_mask=(read > 0).long(), labels=written).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return len(samples)

    return run


def _samples(
    histories: list[np.ndarray], tokens: dict[str, torch.Tensor], prompt: Any, *, history_length: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is read and what is written, token by token, for every sample of the six tasks."""
    found = []
    for task, (source, target) in HISTORY_TASKS.items():
        for history in histories:
            for place in range(1, len(history) - 2):
                recent = tokens[source][torch.from_numpy(history[max(0, place - history_length) : place])].flatten()
                found.append((torch.cat([prompt(task), recent]), tokens[target][history[place]]))
    for alignment, (source, target) in ALIGNMENT_TASKS.items():
        found += [
            (torch.cat([prompt(alignment), own]), other)
            for own, other in zip(tokens[source], tokens[target], strict=True)
        ]
    return found


def _same(ours: Any, theirs: Any) -> None:
    assert ours == theirs, f"{ours} samples against {theirs}"


def _case(
    users: int,
    encoding: Encoding,
    *,
    precision: Precision = "float32",
    config: RecommenderConfig = PUBLISHED,
    **kwargs: Any,
) -> Case:
    items = max(LEVELS, round(users * _ITEMS_A_USER))
    config = config.model_copy(update={"encoding": encoding, "num_epochs": 1, "precision": precision})

    def limit(machine: Machine) -> float:
        """Matrix products of the layers, forward and twice that backward; attention and logits are not counted."""
        targets, length = 5.0, 8.0  # of a user: training targets, items of the mean history that a target looks at
        own, feed = 4 * config.d_model * config.num_heads * config.d_kv, 2 * config.d_model * config.d_ff
        read = LEVELS * (targets * (1 + targets) / 2 if encoding == "exact" else length)  # tokens of a user and task
        written = LEVELS * targets
        macs = config.num_encoder_layers * read * (own + feed) + config.num_decoder_layers * written * (
            1.5 * own + feed
        )
        macs += config.num_decoder_layers * read * own / 2
        return 3 * 2 * users * len(HISTORY_TASKS) * macs / machine.gigaflops / 1e9

    return Case(
        name=f"recommender training, six tasks, {encoding.replace('_', '-')}, {precision}, {users:,} users",
        size=users,
        size_of="users",
        prepare=lambda folder: write_log(folder, users=users, items=items),
        ours=lambda folder: _ours(folder, config),
        baseline=lambda folder: _padded_batches(folder, config),
        same=_same,
        limit=limit,
        bfloat16=precision == "bfloat16",
        **kwargs,
    )
