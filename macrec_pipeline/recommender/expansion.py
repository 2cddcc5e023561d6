"""One step down the tree of IDs: what may follow some prefixes, and how probable the model finds each.

A step's distribution is over the codes that may follow. An only child is certain, so nothing is decoded for its parent;
most prefixes of the last levels have one. What must be decoded is packed, row by row, and decoded from the one encoder
pass. Beam search and exact scoring are both made of this.

Shapes: B rows, P prefixes a row, E children, J prefixes decoded a row, K codes, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender, Memory
    from macrec_pipeline.recommender.prefix_index import PrefixIndex

# Prefixes decoded at once, over all rows: bounds memory.
PREFIXES_AT_ONCE = 8192


@dataclass(frozen=True)
class Children:
    """The children of a row's prefixes, end to end: by row, then by prefix, then by code.

    Attributes:
        row: int64 [E].
        prefix: int64 [E], which of the row's prefixes it follows.
        node: int64 [E], the node of the longer prefix.
        log_probability: float [E], nats of the code that makes it longer.
    """

    row: torch.Tensor
    prefix: torch.Tensor
    node: torch.Tensor
    log_probability: torch.Tensor


def expand(
    model: GenerativeRecommender,
    memory: Memory,
    index: PrefixIndex,
    nodes: torch.Tensor,
    *,
    depth: int,
    modality: str,
    gone: torch.Tensor | None = None,
    prefixes_at_once: int = PREFIXES_AT_ONCE,
) -> Children:
    """Find all that may follow each row's prefixes.

    Args:
        memory: of the B histories.
        nodes: int64 [B, P], nodes at `depth`, -1 where a row has fewer prefixes.
        modality: of the IDs, "text" or "image".
        gone: bool [B, nodes at `depth` + 1], prefixes of which a row must not get any item: they do not follow.
        prefixes_at_once: decoded together, over all rows; changes no number but for rounding.
    """
    rows, width = nodes.shape
    flat = nodes.flatten()
    present = torch.nonzero(flat >= 0).flatten()
    place, child = index.children(flat[present], depth=depth)
    parent = present[place]  # [E], in the flattened [B, P]
    if gone is not None:
        allowed = ~gone[torch.div(parent, width, rounding_mode="floor"), child]
        parent, child = parent[allowed], child[allowed]
    undecided = torch.bincount(parent, minlength=rows * width) > 1  # [B * P]
    log_probability = torch.zeros(len(parent), device=nodes.device)
    chosen = torch.nonzero(undecided[parent]).flatten()  # children of undecided parents
    if len(chosen):
        slot = undecided.cumsum(0) - 1  # [B * P] -> place among the undecided
        logits = _logits(
            model, memory, index, nodes, undecided.view(rows, width), depth=depth, modality=modality,
            prefixes_at_once=prefixes_at_once,
        )  # fmt: skip
        where = slot[parent[chosen]], index.last_codes(child[chosen], depth=depth + 1)
        legal = torch.full_like(logits, float("-inf"))
        legal[where] = logits[where]
        log_probability[chosen] = torch.log_softmax(legal, dim=-1)[where]
    row = torch.div(parent, width, rounding_mode="floor")
    return Children(row, parent - row * width, child, log_probability)


def _logits(
    model: GenerativeRecommender,
    memory: Memory,
    index: PrefixIndex,
    nodes: torch.Tensor,
    undecided: torch.Tensor,
    *,
    depth: int,
    modality: str,
    prefixes_at_once: int,
) -> torch.Tensor:
    """Logits over the next code of the undecided prefixes, bool [B, P], by row, then by prefix: float [sum, K]."""
    count = undecided.sum(dim=1)  # [B]
    first = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    packed = nodes.gather(1, first).clamp(min=0)  # [B, J]; rows with fewer decode something of no use
    real = torch.arange(packed.shape[1], device=nodes.device) < count[:, None]
    chunk = max(1, prefixes_at_once // len(nodes))
    inputs = model.decoder_inputs(index.prefixes(packed, depth=depth), modality=modality)  # [B, J, depth + 1]
    states = [model.decode(part, memory)[:, :, -1] for part in torch.split(inputs, chunk, dim=1)]
    kept = torch.cat(states, dim=1)[real]
    return model.code_logits(kept[:, None], modality=modality, first_level=depth)[:, 0]
