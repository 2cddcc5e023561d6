"""The prefix index: which codes may follow which prefix, as tensors on the device.

The N semantic IDs are the leaves of a tree of depth L. A node is an int within its depth; node 0 at depth 0 is the
root, and nodes at every depth stand in lexicographic order of their prefixes, so a leaf's number is its rank. The
children of all nodes of a depth lie end to end (CSR): no memory beyond a few ints an item, whatever K is.

Shapes: N items, L levels, K codes, B rows, M nodes of a depth, E children.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from macrec_pipeline.errors import SemanticIdError


@dataclass(frozen=True)
class _Depth:
    """Nodes at one depth, as the children of the nodes above.

    Attributes:
        first_child: int64 [M_above + 1], children of node n are numbers first_child[n] .. first_child[n + 1] - 1.
        code: int64 [M], the last code of each node's prefix.
        first_leaf: int64 [M + 1], the leaves below node n are numbers first_leaf[n] .. first_leaf[n + 1] - 1.
        node_of_item: int64 [N], the node whose prefix an item's ID has.
        any_item: int64 [M], an item below each node.
    """

    first_child: torch.Tensor
    code: torch.Tensor
    first_leaf: torch.Tensor
    node_of_item: torch.Tensor
    any_item: torch.Tensor


class PrefixTree:
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
            first_child = torch.searchsorted(above, torch.arange(num_above + 1, device=codes.device))
            any_item = torch.empty_like(prefixes)
            any_item[node] = torch.arange(self.num_items, device=codes.device)
            first_leaf = F.pad(leaves.cumsum(0), (1, 0))
            self._depths.append(_Depth(first_child, prefixes % codebook_size, first_leaf, node, any_item))
            num_above = len(prefixes)
        if num_above < self.num_items:
            repeated = torch.nonzero(leaves > 1)[0, 0]
            rows = torch.nonzero(node == repeated)[:2, 0].tolist()
            raise SemanticIdError(f"Items {rows[0]} and {rows[1]} share the semantic ID {codes[rows[0]].tolist()}.")
        self._item_of_leaf = torch.empty_like(node)
        self._item_of_leaf[node] = torch.arange(self.num_items, device=codes.device)

    def children(self, nodes: torch.Tensor, *, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What may follow prefixes of length `depth`, end to end.

        Args:
            nodes: int64 [M], nodes at `depth`, in any order.

        Returns:
            parent: int64 [E], ascending places in `nodes`; child: int64 [E], nodes at `depth` + 1, ascending below one
            parent.
        """
        below = self._depths[depth]
        first = below.first_child[nodes]
        count = below.first_child[nodes + 1] - first
        parent = torch.repeat_interleave(torch.arange(len(count), device=nodes.device), count)
        rank = torch.arange(len(parent), device=nodes.device) - (count.cumsum(0) - count)[parent]
        return parent, first[parent] + rank

    def last_codes(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """The last code of the prefixes of nodes at `depth` (from 1), int64 of the shape of `nodes`."""
        return self._depths[depth - 1].code[nodes]

    def nodes_of(self, items: torch.Tensor, *, depth: int) -> torch.Tensor:
        """The node at `depth` whose prefix each item's ID has, int64 of the shape of `items`."""
        return torch.zeros_like(items) if depth == 0 else self._depths[depth - 1].node_of_item[items]

    def counted(self, items: torch.Tensor) -> torch.Tensor:
        """How many of some items, bool [B, N], stand before each leaf and before the end: int32 [B, N + 1]."""
        return F.pad(items[:, self._item_of_leaf].cumsum(dim=1, dtype=torch.int32), (1, 0))

    def any_below(self, counted: torch.Tensor, rows: torch.Tensor, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Which nodes at `depth` (from 1) have one of the items below them that their row counts.

        Args:
            counted: what `counted` gave; a single row holds for all.
            rows, nodes: int64 [E].

        Returns:
            bool [E].
        """
        first_leaf, rows = self._depths[depth - 1].first_leaf, rows.clamp(max=len(counted) - 1)
        return counted[rows, first_leaf[nodes + 1]] > counted[rows, first_leaf[nodes]]

    def num_items_below(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Items whose ID begins with the prefix of each node at `depth`, int64 of the shape of `nodes`."""
        if depth == 0:
            return torch.full_like(nodes, self.num_items)
        first_leaf = self._depths[depth - 1].first_leaf
        return first_leaf[nodes + 1] - first_leaf[nodes]

    def parents(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """The node one code shorter of each node at `depth` (from 1), int64 of the shape of `nodes`."""
        return torch.searchsorted(self._depths[depth - 1].first_child, nodes, right=True) - 1

    def prefixes(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """The codes of nodes at `depth`: int64 [...] -> int64 [..., depth]."""
        if depth == 0:
            return nodes.new_empty(*nodes.shape, 0)
        return self._codes[self._depths[depth - 1].any_item[nodes], :depth]

    def num_nodes(self, *, depth: int) -> int:
        """Distinct prefixes of length `depth`."""
        return 1 if depth == 0 else len(self._depths[depth - 1].code)

    def items(self, leaves: torch.Tensor) -> torch.Tensor:
        """Leaves (nodes at depth L) of any shape -> item indices int64 of that shape."""
        return self._item_of_leaf[leaves]
