"""Beam search for the 20 best items of one route, for users of a log like Instruments', with the published model.

Histories use the published encoding ("exact"), so transformers' own `generate` gives the same items. The baseline has
the same weights as the first rows of a text vocabulary, a trie of dictionaries behind `prefix_allowed_tokens_fn`, and
scores normalised over what the trie allows. The limit counts the necessary matrix products at the machine's float32
rate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from benchmarks.speed.shop import ITEMS, LEVELS, PUBLISHED, SMALL, as_text_model, random_model, read_log, write_log
from macrec_pipeline.config import RecommenderConfig, RuntimeConfig
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.runtime.devices import prepare_device

_WIDTH = 20
_BASELINE_BATCH = 16
_WHY_NOT = (
    "the layers' matrix products, at the rate of torch's library, take 45% of the time on a Xeon; the rest is "
    "distributed over copies, norms, softmax and element-wise products"
)


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [
        # with fewer users, batches of similar length would be smaller than in practice
        _case(1_000, target=40, by_ratio=True, repeats=5, baseline_repeats=1, why_not=_WHY_NOT),
        _case(4_096, batch_size=512, peak_limit_mb=1500, repeats=3, baseline_repeats=0),
    ]


def growing() -> list[Case]:
    """Return cases for the cost by users and, with the number of users fixed, by beam width, batch and history."""
    by_users = [_case(size, repeats=3, baseline_repeats=0) for size in (256, 1_024, 2_048)]
    by_beams = [_by_quantity("beam width", width, "beams", width=width) for width in (5, 10, 20, 50)]
    by_batch = [_by_quantity("batch", batch, "users a batch", batch_size=batch) for batch in (8, 32, 128, 512)]
    long_history = PUBLISHED.model_copy(update={"history_length": 50})
    by_length = [
        _by_quantity("history", items, "items read", length=items, config=long_history) for items in (5, 10, 20, 50)
    ]
    return by_users + by_beams + by_batch + by_length


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [_case(6, items=60, config=SMALL, repeats=1, baseline_repeats=1)]


def _pipeline(folder: Path, config: RecommenderConfig, *, batch_size: int, width: int) -> Timed:
    histories, codes = read_log(folder)
    prepare_device(RuntimeConfig(device="cpu", num_threads=torch.get_num_threads()))
    items = ItemCodes({name: torch.from_numpy(value) for name, value in codes.items()})
    retriever = MultiRouteRetriever(random_model(config), items)

    def run() -> np.ndarray:
        ranked = retriever.rank(histories, routes=["text"], top_k=width, beam_width=width, batch_size=batch_size)
        return np.stack([of_user.item_indices for of_user in ranked["text"]])

    return run


def _baseline(folder: Path, config: RecommenderConfig) -> Timed:
    histories, codes = read_log(folder)
    model = random_model(config)
    text_model = as_text_model(model)
    tokens = model.vocabulary.item_tokens(torch.from_numpy(codes["text"]), modality="text")  # [N, L]
    trie: dict[int, Any] = {}
    for row in tokens.tolist():
        node = trie
        for token in row:
            node = node.setdefault(token, {})
    item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}

    def allowed_tokens(_: int, prefix: torch.Tensor) -> list[int]:
        node = trie
        for token in prefix.tolist()[1:]:
            node = node[token]
        return list(node)

    def run() -> np.ndarray:
        items: list[int] = []
        for begin in range(0, len(histories), _BASELINE_BATCH):
            rows = [
                tokens[torch.from_numpy(h[-config.history_length :])].flatten()
                for h in histories[begin : begin + _BASELINE_BATCH]
            ]
            inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
            outputs = text_model.generate(
                input_ids=inputs,
                attention_mask=(inputs > 0).long(),
                num_beams=_WIDTH,
                num_return_sequences=_WIDTH,
                max_new_tokens=LEVELS,
                min_new_tokens=LEVELS,
                do_sample=False,
                renormalize_logits=True,
                prefix_allowed_tokens_fn=allowed_tokens,
            )
            items += [item_of[tuple(row)] for row in outputs[:, 1 : LEVELS + 1].tolist()]
        return np.array(items).reshape(len(histories), _WIDTH)

    return run


def _check_equal(pipeline: Any, baseline: Any) -> None:
    """Nearly all lists must be equal; float noise may swap two items with almost the same score."""
    same = (pipeline == baseline).all(axis=1)
    assert same.mean() > 0.9, f"{(~same).sum()} of {len(same)} lists differ"
    shared = [len(set(a) & set(b)) for a, b in zip(pipeline.tolist(), baseline.tolist(), strict=True)]
    assert min(shared) >= _WIDTH - 1, "more than the last item differs"


def _by_quantity(quantity: str, size: int, size_of: str, **kwargs: Any) -> Case:
    case = _case(512, repeats=3, baseline_repeats=0, **kwargs)
    name = f"decoding by {quantity}, {size:,} {size_of}, 512 users"
    return dataclasses.replace(case, name=name, size=size, size_of=size_of, limit=None)


def _case(
    users: int,
    *,
    config: RecommenderConfig = PUBLISHED,
    items: int = ITEMS,
    batch_size: int = 256,
    width: int = _WIDTH,
    length: int | None = None,
    **kwargs: Any,
) -> Case:
    def limit(machine: Machine) -> float:
        num_tokens = np.minimum(5 + 3, config.history_length) * LEVELS  # tokens of a mean history
        attention, feed_forward = 4 * config.d_model * config.num_heads * config.d_kv, 2 * config.d_model * config.d_ff
        encoder = config.num_encoder_layers * num_tokens * (attention + feed_forward)
        cross_keys = config.num_decoder_layers * num_tokens * attention / 2
        num_decoded = 1 + _WIDTH  # the root and one code per beam; most later codes are certain
        decoder = config.num_decoder_layers * num_decoded * (attention + attention / 2 + feed_forward)
        return 2 * users * float(encoder + cross_keys + decoder) / machine.gigaflops / 1e9

    return Case(
        name=f"beam-{_WIDTH} decoding, one route, {users:,} users, batch {batch_size}",
        size=users,
        size_of="users",
        prepare=lambda folder: write_log(folder, users=users, items=items, length=length),
        pipeline=lambda folder: _pipeline(folder, config, batch_size=batch_size, width=width),
        baseline=lambda folder: _baseline(folder, config),
        check_equal=_check_equal,
        limit=limit,
        **kwargs,
    )
