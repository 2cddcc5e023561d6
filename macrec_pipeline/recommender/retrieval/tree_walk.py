"""Walking down the tree of IDs with the model: what may follow some prefixes, and how probable each is.

A step's distribution is over the codes that may follow. A prefix with a single item below it is certain to the end, so
nothing is decoded for it; most prefixes of the last levels have one. The others are packed, row by row, and decoded
from the one encoder pass, their last code alone: what the decoder's layers made of the codes before is kept. Beam
search and exact scoring are both such walks.

Shapes: B rows, P prefixes a row, J of them that are decoded, E children, K codes, D d_model, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import (
        CrossAttentionCache,
        GenerativeRecommender,
        SelfAttentionCache,
    )
    from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree


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

    def where(self, kept: torch.Tensor) -> Children:
        """Those that are kept, bool [E]."""
        return Children(self.row[kept], self.prefix[kept], self.node[kept], self.log_probability[kept])


class PrefixTreeWalk:
    """One walk from the root, a level at a time, for all rows of a batch.

    Args:
        memory: of the B histories; its bias is the same for whatever is decoded.
        index: of the IDs that exist.
        modality: of the IDs, "text" or "image".
        forbidden: bool [B, N], items that do not exist for a row: a prefix that has no other does not follow.
        legal: bool [B, N], or [1, N] for all rows, items that the rules let a row get: a prefix that has none is not
            gone into, but keeps its share of the distribution.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        memory: CrossAttentionCache,
        index: PrefixTree,
        *,
        modality: str,
        forbidden: torch.Tensor | None = None,
        legal: torch.Tensor | None = None,
    ) -> None:
        self._model, self._memory, self._index, self._modality = model, memory, index, modality
        self._existing = None if forbidden is None else index.counted(~forbidden)
        self._legal = None if legal is None else index.counted(legal if forbidden is None else legal & ~forbidden)
        self._depth = 0
        # of the previous step: each prefix's place among the decoded, and where its own beginnings were decoded
        self._slot = torch.zeros(memory.num_rows, 1, dtype=torch.int64, device=memory.device)
        self._past: list[SelfAttentionCache] = []

    @torch.no_grad()
    def step(self, nodes: torch.Tensor, parents: torch.Tensor | None = None) -> Children:
        """Find all that may follow the rows' prefixes, which are one code longer than those of the step before.

        Args:
            nodes: int64 [B, P], -1 where a row has fewer prefixes; at first the root, [B, 1].
            parents: int64 [B, P], which of the row's prefixes of the step before each is longer than; None at first.
        """
        depth, index = self._depth, self._index
        width = nodes.shape[1]
        undecided = (nodes >= 0) & (index.num_items_below(nodes.clamp(min=0), depth=depth) > 1)
        logits = self._logits(nodes, parents, undecided)  # [number undecided, K]
        flat = nodes.flatten()
        present = torch.nonzero(flat >= 0).flatten()
        place, child = index.children(flat[present], depth=depth)
        parent = present[place]  # [E], in the flattened [B, P]
        row = torch.div(parent, width, rounding_mode="floor")
        if self._existing is not None:
            exists = index.any_below(self._existing, row, child, depth=depth + 1)
            row, parent, child = row[exists], parent[exists], child[exists]
        log_probability = torch.zeros(len(parent), device=nodes.device)
        chosen = torch.nonzero(undecided.flatten()[parent]).flatten()
        where = undecided.flatten().cumsum(0)[parent[chosen]] - 1, index.last_codes(child[chosen], depth=depth + 1)
        legal = torch.full_like(logits, float("-inf"))
        legal[where] = logits[where]
        log_probability[chosen] = torch.log_softmax(legal, dim=-1)[where]
        self._depth += 1
        found = Children(row, parent - row * width, child, log_probability)
        if self._legal is None:
            return found
        return found.where(index.any_below(self._legal, row, child, depth=depth + 1))

    def _logits(self, nodes: torch.Tensor, parents: torch.Tensor | None, undecided: torch.Tensor) -> torch.Tensor:
        """Logits over the next code of the undecided prefixes, bool [B, P], by row, then by prefix: float [sum, K]."""
        count = undecided.sum(dim=1)  # [B]
        if not count.any():  # nor will any prefix further down be
            return torch.empty(0, self._index.codebook_size, device=nodes.device)
        chosen = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]  # [B, J]
        real = torch.arange(chosen.shape[1], device=nodes.device) < count[:, None]  # others decode what is of no use
        if parents is not None:
            slots = self._slot.gather(1, parents.gather(1, chosen).clamp(min=0)).clamp(min=0)  # [B, J]
            self._past = [position.of(slots) for position in self._past]
        packed = nodes.gather(1, chosen).clamp(min=0)
        tokens = self._model.last_tokens(self._index.prefixes(packed, depth=self._depth), modality=self._modality)
        states, position = self._model.decode_next(tokens, self._memory, self._past)  # [B, J, D]
        self._past = [*self._past, position]
        self._slot = undecided.cumsum(dim=1) - 1
        return self._model.code_logits(states[real][:, None], modality=self._modality, first_level=self._depth)[:, 0]
