"""The 20 best items of a route by beam search, for users of the Instruments log, with the published model.

Encoded exactly as published, so that transformers' own `generate` gives the same: the baseline has our weights as the
first rows of a text vocabulary, a trie of dictionaries behind `prefix_allowed_tokens_fn`, and scores normalised over
what the trie allows. The limit counts the matrix products that have to be made at the machine's fp32 rate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from benchmarks.speed.shop import ITEMS, LEVELS, PUBLISHED, SMALL, a_model, as_text_model, read_log, write_log
from macrec_pipeline.config import RecommenderConfig, RuntimeConfig
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.devices import prepare_device

_WIDTH = 20
_BASELINE_BATCH = 16
_WHY_NOT = (
    "products of the layers, at the rate that torch's library has here, are 45% of the time on a Xeon, the "
    "rest is spread over copies, norms, softmax and element-wise products"
)


def cases() -> list[Case]:
    """The table."""
    return [
        # fewer users would fit into fewer batches of like lengths, as no night's scoring has them
        _case(1_000, target=40, by_ratio=True, repeats=5, baseline_repeats=1, why_not=_WHY_NOT),
        _case(4_096, batch_size=512, peak_limit_mb=1500, repeats=3, baseline_repeats=0),
    ]


def growing() -> list[Case]:
    """The cost by users, and for as many users by beams, batch and history."""
    by_users = [_case(size, repeats=3, baseline_repeats=0) for size in (256, 1_024, 2_048)]
    by_beams = [_by("beam width", width, "beams", width=width) for width in (5, 10, 20, 50)]
    by_batch = [_by("batch", batch, "users a batch", batch_size=batch) for batch in (8, 32, 128, 512)]
    reading = PUBLISHED.model_copy(update={"history_length": 50})
    by_length = [_by("history", items, "items read", length=items, config=reading) for items in (5, 10, 20, 50)]
    return by_users + by_beams + by_batch + by_length


def tiny() -> list[Case]:
    """For the tests."""
    return [_case(6, items=60, config=SMALL, repeats=1, baseline_repeats=1)]


def _ours(folder: Path, config: RecommenderConfig, *, batch_size: int, width: int) -> Timed:
    histories, codes = read_log(folder)
    prepare_device(RuntimeConfig(device="cpu", num_threads=torch.get_num_threads()))
    items = ItemCodes({name: torch.from_numpy(value) for name, value in codes.items()})
    decoder = MultiRouteRetriever(a_model(config), items)

    def run() -> np.ndarray:
        found = decoder.rank(histories, routes=["text"], top_k=width, beam_width=width, batch_size=batch_size)
        return np.stack([ranked.item_indices for ranked in found["text"]])

    return run


def _generate(folder: Path, config: RecommenderConfig) -> Timed:
    histories, codes = read_log(folder)
    model = a_model(config)
    theirs = as_text_model(model)
    tokens = model.vocabulary.item_tokens(torch.from_numpy(codes["text"]), modality="text")  # [N, L]
    trie: dict[int, Any] = {}
    for row in tokens.tolist():
        node = trie
        for token in row:
            node = node.setdefault(token, {})
    item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}

    def allowed(_: int, sent: torch.Tensor) -> list[int]:
        node = trie
        for token in sent.tolist()[1:]:
            node = node[token]
        return list(node)

    def run() -> np.ndarray:
        found = []
        for begin in range(0, len(histories), _BASELINE_BATCH):
            rows = [
                tokens[torch.from_numpy(h[-config.history_length :])].flatten()
                for h in histories[begin : begin + _BASELINE_BATCH]
            ]
            read = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
            written = theirs.generate(
                input_ids=read,
                attention_mask=(read > 0).long(),
                num_beams=_WIDTH,
                num_return_sequences=_WIDTH,
                max_new_tokens=LEVELS,
                min_new_tokens=LEVELS,
                do_sample=False,
                renormalize_logits=True,
                prefix_allowed_tokens_fn=allowed,
            )
            found += [item_of[tuple(row)] for row in written[:, 1 : LEVELS + 1].tolist()]
        return np.array(found).reshape(len(histories), _WIDTH)

    return run


def _same(ours: Any, theirs: Any) -> None:
    """The same items in the same order for nearly all; float noise may swap two that score the same."""
    same = (ours == theirs).all(axis=1)
    assert same.mean() > 0.9, f"{(~same).sum()} of {len(same)} lists differ"
    shared = [len(set(a) & set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert min(shared) >= _WIDTH - 1, "more than the last place differs"


def _by(what: str, size: int, size_of: str, **kwargs: Any) -> Case:
    case = _case(512, repeats=3, baseline_repeats=0, **kwargs)
    name = f"decoding by {what}, {size:,} {size_of}, 512 users"
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
        draw = np.minimum(5 + 3, config.history_length) * LEVELS  # tokens of a mean history
        own, feed = 4 * config.d_model * config.num_heads * config.d_kv, 2 * config.d_model * config.d_ff
        encoder = config.num_encoder_layers * draw * (own + feed)
        remembered = config.num_decoder_layers * draw * own / 2
        decoded = 1 + _WIDTH  # the start, and a first code a beam; what follows is mostly certain
        decoder = config.num_decoder_layers * decoded * (own + own / 2 + feed)
        return 2 * users * float(encoder + remembered + decoder) / machine.gigaflops / 1e9

    return Case(
        name=f"beam-{_WIDTH} decoding, one route, {users:,} users, batch {batch_size}",
        size=users,
        size_of="users",
        prepare=lambda folder: write_log(folder, users=users, items=items, length=length),
        ours=lambda folder: _ours(folder, config, batch_size=batch_size, width=width),
        baseline=lambda folder: _generate(folder, config),
        same=_same,
        limit=limit,
        **kwargs,
    )
