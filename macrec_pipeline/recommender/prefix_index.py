"""The prefix index: which codes may follow which prefix, as tensors on the device.

The N semantic IDs are the leaves of a tree of depth L. A node is an int within its depth; node 0 at depth 0 is the
root, and nodes at every depth stand in lexicographic order of their prefixes, so a leaf's number is its rank. The
children of all nodes of a depth lie end to end (CSR): no memory beyond a few ints an item, whatever K is.

Shapes: N items, L levels, K codes, B rows, W beams, M nodes of a depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from macrec_pipeline.errors import SemanticIdError


@dataclass(frozen=True)
class _Depth:
    """Nodes at one depth, as the children of the nodes above.

    Attributes:
        first_child: int64 [M_above + 1], children of node n are numbers first_child[n] .. first_child[n + 1] - 1.
        code: int64 [M], the last code of each node's prefix.
        num_leaves: int64 [M], items below each node.
        node_of_item: int64 [N], the node whose prefix an item's ID has.
    """

    first_child: torch.Tensor
    code: torch.Tensor
    num_leaves: torch.Tensor
    node_of_item: torch.Tensor


class PrefixIndex:
    """The tree of the existing IDs of one modality.

    Args:
        codes: int64 [N, L], each in [0, codebook_size), rows distinct.
        codebook_size: K.

    Raises:
        SemanticIdError: two items share an ID; names both rows.
    """

    def __init__(self, codes: torch.Tensor, *, codebook_size: int) -> None:
        self.num_items, self.num_levels = codes.shape
        self.codebook_size = codebook_size
        self._codes = codes
        self._depths: list[_Depth] = []
        node = torch.zeros(self.num_items, dtype=torch.int64, device=codes.device)  # the root
        num_above = 1
        for level in range(self.num_levels):
            key = node * codebook_size + codes[:, level]
            prefixes, node, leaves = torch.unique(key, return_inverse=True, return_counts=True)  # sorted
            above = torch.div(prefixes, codebook_size, rounding_mode="floor")
            bounds = torch.arange(num_above + 1, device=codes.device)
            self._depths.append(_Depth(torch.searchsorted(above, bounds), prefixes % codebook_size, leaves, node))
            num_above = len(prefixes)
        if num_above < self.num_items:
            repeated = torch.nonzero(leaves > 1)[0, 0]
            rows = torch.nonzero(node == repeated)[:2, 0].tolist()
            raise SemanticIdError(f"Items {rows[0]} and {rows[1]} share the semantic ID {codes[rows[0]].tolist()}.")
        self._item_of_leaf = torch.empty_like(node)
        self._item_of_leaf[node] = torch.arange(self.num_items, device=codes.device)

    def children(self, nodes: torch.Tensor, *, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What may follow prefixes of length `depth`.

        Args:
            nodes: int64 [B, W], nodes at `depth`.

        Returns:
            legal: bool [B, W, K]; child: int64 [B, W, K], the node at `depth` + 1, 0 where not legal.
        """
        below = self._depths[depth]
        first, end = below.first_child[nodes.flatten()], below.first_child[nodes.flatten() + 1]
        count = end - first
        row = torch.repeat_interleave(torch.arange(len(count), device=nodes.device), count)
        rank = torch.arange(len(row), device=nodes.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
        child = first[row] + rank
        legal = torch.zeros(len(count), self.codebook_size, dtype=torch.bool, device=nodes.device)
        table = torch.zeros(len(count), self.codebook_size, dtype=torch.int64, device=nodes.device)
        legal[row, below.code[child]] = True
        table[row, below.code[child]] = child
        return legal.view(*nodes.shape, -1), table.view(*nodes.shape, -1)

    def exhausted(self, forbidden: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Which nodes at `depth` (from 1) have no item left, if some items are forbidden.

        Args:
            forbidden: bool [B, N], True for items that a row must not get.

        Returns:
            bool [B, M].
        """
        below = self._depths[depth - 1]
        gone = torch.zeros(len(forbidden), len(below.code), dtype=torch.int32, device=forbidden.device)
        index = below.node_of_item.expand(len(forbidden), -1)
        gone.scatter_add_(1, index, forbidden.to(torch.int32))
        return gone >= below.num_leaves

    def prefixes(self, *, depth: int) -> torch.Tensor:
        """The codes of all nodes at `depth`: int64 [M, depth]."""
        if depth == 0:
            return self._codes.new_empty(1, 0)
        below = self._depths[depth - 1]
        owner = torch.empty_like(below.code)
        owner[below.node_of_item] = torch.arange(self.num_items, device=owner.device)  # any item below the node
        return self._codes[owner, :depth]

    def items(self, leaves: torch.Tensor) -> torch.Tensor:
        """Leaves (nodes at depth L) of any shape -> item indices int64 of that shape."""
        return self._item_of_leaf[leaves]
