"""Decoding along the prefix tree: beam search (MACRec section 3.4), and exact scores without a beam.

Both start from encoded histories and walk down a `PrefixTree`, the tree of the semantic IDs that exist, one level at a
time for all rows of a batch at once. `beam_search` keeps the W best prefixes of each row and returns items.
`score_items` follows the prefixes of given items and returns their scores; `score_catalogue` does so for all N items.

At each step, the model's distribution covers only the codes that can follow a prefix, so an item's score is its
log-probability under the model restricted to the catalogue, divided by L. A prefix with a single item below it is
certain to the end, and the model is not run for it; on the last levels this holds for most prefixes. The remaining
prefixes are packed per row, and only their last code is decoded: keys and values of the earlier codes are cached. The
only Python loop is over the L levels. Walks of several modalities can share one pass of the decoder per level.

Shapes (docs/notation.md): B batch rows, C candidate items per row, D hidden width, E children, K codes per level, L
levels, M decoded targets of all rows, N items, P prefixes per row, W beams.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
import torch.nn.functional as F

from macrec_pipeline.errors import SemanticIdError

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import (
        CrossAttentionCache,
        GenerativeRecommender,
        SelfAttentionCache,
    )

_NO_NODE = torch.iinfo(torch.int64).max
# How many items `score_catalogue` scores at once, over all rows; bounds memory.
ITEMS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Beams:
    """The items that a retrieval route found, best first.

    Attributes:
        items: int64 [B, W], -1 where a row has fewer than W items.
        scores: float [B, W], mean log-probability per code in nats; minus infinity where there is no item.
    """

    items: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def beam_search(
    model: GenerativeRecommender,
    cross_cache: CrossAttentionCache,
    tree: PrefixTree,
    *,
    modality: str,
    beam_width: int,
    excluded: torch.Tensor | None = None,
    eligible: torch.Tensor | None = None,
) -> Beams:
    """Find the items whose semantic IDs are most probable.

    Prefixes without an item that the row may receive are not followed, so the search returns W items, or all that
    the row may receive if they are fewer.
    Equal scores are broken in favour of the smaller prefix.

    Args:
        model: in evaluation mode.
        cross_cache: the B encoded histories.
        tree: the existing IDs of `modality`.
        modality: which IDs to decode, "text" or "image".
        beam_width: W.
        excluded: bool [B, N], items removed from a row's distribution; the others share their probability.
        eligible: bool [B, N], or [1, N] for all rows, the items that business rules permit. The others are not
            returned, but keep their probability, so the rules change no item's score.
    """
    (beams,) = beam_searches(
        model, cross_cache, {modality: tree}, beam_width=beam_width, excluded=excluded, eligible=eligible
    )
    return beams


@torch.no_grad()
def beam_searches(
    model: GenerativeRecommender,
    cross_cache: CrossAttentionCache,
    trees: Mapping[str, PrefixTree],
    *,
    beam_width: int,
    excluded: torch.Tensor | None = None,
    eligible: torch.Tensor | None = None,
) -> list[Beams]:
    """Run `beam_search` for several modalities at once, with one decoder pass per level for all of them.

    The result is that of separate searches. For few histories it takes about half the time, because each pass reads all
    weights of the decoder.

    Args:
        model: in evaluation mode.
        cross_cache: the B histories as encoded for the first modality, followed by those for the second, and so on.
        trees: the existing IDs of each modality.
        beam_width: W.
        excluded: bool [B, N], as in `beam_search`.
        eligible: bool [B, N] or [1, N], as in `beam_search`.

    Returns:
        The beams of each modality, in the order of `trees`.
    """
    num_rows = cross_cache.num_rows // len(trees)
    walks = [
        _PrefixTreeWalk(
            model,
            tree,
            modality=modality,
            num_rows=num_rows,
            device=cross_cache.device,
            excluded=excluded,
            eligible=eligible,
        )
        for modality, tree in trees.items()
    ]
    searches = [_search(walk, beam_width=beam_width) for walk in walks]
    return _run_together(model, cross_cache, searches)


def _search(walk: _PrefixTreeWalk, *, beam_width: int) -> _Walking[Beams]:
    """Keep the best W prefixes of each level."""
    nodes = torch.zeros(walk.num_rows, 1, dtype=torch.int64, device=walk.device)
    scores, parents = torch.zeros(nodes.shape, device=walk.device), None
    for _ in range(walk.num_levels):
        children = yield from walk.step(nodes, parents)
        nodes, scores, parents = _best_children(children, scores, beam_width=beam_width)
    items = walk.tree.items(nodes.clamp(min=0)).masked_fill(nodes < 0, -1)
    return Beams(items, scores / walk.num_levels)


@torch.no_grad()
def score_items(
    model: GenerativeRecommender,
    cross_cache: CrossAttentionCache,
    tree: PrefixTree,
    items: torch.Tensor,
    *,
    modality: str,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score given items exactly, on the scale of `beam_search`.

    At each level, every distinct prefix of a row's items is decoded once.

    Args:
        model: in evaluation mode.
        cross_cache: the B encoded histories.
        tree: the existing IDs of `modality`.
        items: int64 [B, C], -1 for no item; repeated items are allowed.
        modality: which IDs to score, "text" or "image".
        excluded: bool [B, N], items removed from a row's distribution; they score minus infinity.

    Returns:
        float [B, C], mean log-probability per code in nats; minus infinity where there is no item.
    """
    walk = _PrefixTreeWalk(
        model, tree, modality=modality, num_rows=len(items), device=cross_cache.device, excluded=excluded
    )
    (scores,) = _run_together(model, cross_cache, [_score(walk, items)])
    return scores


def _score(walk: _PrefixTreeWalk, items: torch.Tensor) -> _Walking[torch.Tensor]:
    """Follow the prefixes of the items of each row."""
    tree, valid_items = walk.tree, items.clamp(min=0)
    row = torch.arange(len(items), device=items.device)[:, None]
    totals = torch.zeros(items.shape, device=items.device)
    prefixes, parents = torch.zeros(len(items), 1, dtype=torch.int64, device=items.device), None
    for depth in range(tree.num_levels):
        if depth > 0:
            longer = _distinct_nodes(tree.nodes_of(valid_items, depth=depth), items >= 0)
            parent_nodes = tree.parents(longer.clamp(min=0), depth=depth)
            # a search needs ascending rows, so padding moves from -1 to the largest integer
            ascending = prefixes.masked_fill(prefixes < 0, _NO_NODE)
            parents = torch.searchsorted(ascending, parent_nodes).clamp(max=prefixes.shape[1] - 1)
            prefixes = longer
        children = yield from walk.step(prefixes, parents)
        num_nodes = tree.num_nodes(depth=depth + 1)
        keys = children.row * num_nodes + children.node  # ascending
        if not len(keys):
            return totals.fill_(float("-inf"))
        item_keys = row * num_nodes + tree.nodes_of(valid_items, depth=depth + 1)
        position = torch.searchsorted(keys, item_keys).clamp(max=len(keys) - 1)
        found = keys[position] == item_keys  # the prefix of an excluded item may be missing
        totals += torch.where(found, children.log_probability[position], float("-inf"))
    return totals.masked_fill_(items < 0, float("-inf")) / tree.num_levels


def score_catalogue(
    model: GenerativeRecommender,
    cross_cache: CrossAttentionCache,
    tree: PrefixTree,
    *,
    modality: str,
    excluded: torch.Tensor | None = None,
    items_at_once: int = ITEMS_AT_ONCE,
) -> torch.Tensor:
    """Score all N items with `score_items`: float [B, N].

    Rows are processed in groups of about `items_at_once` scores, which bounds memory and changes no number.
    """
    all_items = torch.arange(tree.num_items, device=cross_cache.device)
    scores = []
    size = max(1, items_at_once // tree.num_items)
    for begin in range(0, cross_cache.num_rows, size):
        part = cross_cache.rows(slice(begin, begin + size))
        part_excluded = None if excluded is None else excluded[begin : begin + size]
        items = all_items.expand(part.num_rows, -1)
        scores.append(score_items(model, part, tree, items, modality=modality, excluded=part_excluded))
    return torch.cat(scores)


class PrefixTree:
    """The tree of all semantic IDs of one modality: which codes can follow which prefix, as tensors on the device.

    The N semantic IDs are the leaves of a tree of depth L. A node is identified by an integer within its depth: node 0
    at depth 0 is the root, and the nodes at each depth are numbered in lexicographic order of their prefixes. A leaf's
    number is therefore the rank of its ID. The children of all nodes at one depth are stored end to end (CSR layout),
    so memory is a few integers per item, whatever the codebook size.

    Args:
        codes: int64 [N, L], each in [0, codebook_size), no two rows equal.
        codebook_size: K.

    Raises:
        SemanticIdError: two items share an ID. The message names both rows.
    """

    def __init__(self, codes: torch.Tensor, *, codebook_size: int) -> None:
        self.num_items, self.num_levels = codes.shape
        self.codebook_size = codebook_size
        self._codes = codes
        self._depths: list[_Depth] = []
        node = torch.zeros(self.num_items, dtype=torch.int64, device=codes.device)  # every item starts at the root
        num_parents = 1
        for level in range(self.num_levels):
            key = node * codebook_size + codes[:, level]
            prefixes, node, num_leaves = torch.unique(key, return_inverse=True, return_counts=True)  # sorted
            parent = torch.div(prefixes, codebook_size, rounding_mode="floor")
            first_child = torch.searchsorted(parent, torch.arange(num_parents + 1, device=codes.device))
            example_item = torch.empty_like(prefixes)
            example_item[node] = torch.arange(self.num_items, device=codes.device)
            first_leaf = F.pad(num_leaves.cumsum(0), (1, 0))
            self._depths.append(_Depth(first_child, prefixes % codebook_size, first_leaf, node, example_item))
            num_parents = len(prefixes)
        if num_parents < self.num_items:
            shared = torch.nonzero(num_leaves > 1)[0, 0]
            rows = torch.nonzero(node == shared)[:2, 0].tolist()
            raise SemanticIdError(
                f"Items {rows[0]} and {rows[1]} share the semantic ID {codes[rows[0]].tolist()}; each item needs an ID "
                "of its own. Materialize `semantic_ids` again, which resolves collisions, or correct the IDs that the "
                "data set brings."
            )
        self._item_of_leaf = torch.empty_like(node)
        self._item_of_leaf[node] = torch.arange(self.num_items, device=codes.device)

    def children(self, nodes: torch.Tensor, *, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """List all children of some nodes, end to end.

        Args:
            nodes: int64 [any], nodes at `depth`, in any order.
            depth: from 0 to L - 1.

        Returns:
            parent: int64 [E], positions in `nodes`, ascending.
            child: int64 [E], nodes at `depth` + 1, ascending within each parent.
        """
        below = self._depths[depth]
        first = below.first_child[nodes]
        count = below.first_child[nodes + 1] - first
        parent = torch.repeat_interleave(torch.arange(len(count), device=nodes.device), count)
        rank = torch.arange(len(parent), device=nodes.device) - (count.cumsum(0) - count)[parent]
        return parent, first[parent] + rank

    def last_codes(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Return the last code of each node's prefix, int64 in the shape of `nodes`; `depth` is at least 1."""
        return self._depths[depth - 1].code[nodes]

    def nodes_of(self, items: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Return the node at `depth` that each item's ID passes through, int64 in the shape of `items`."""
        return torch.zeros_like(items) if depth == 0 else self._depths[depth - 1].node_of_item[items]

    def cumulative_leaf_counts(self, mask: torch.Tensor) -> torch.Tensor:
        """Count, for every leaf, the items of `mask` (bool [B, N]) that precede it: int32 [B, N + 1], total last."""
        return F.pad(mask[:, self._item_of_leaf].cumsum(dim=1, dtype=torch.int32), (1, 0))

    def has_leaf_below(
        self, leaf_counts: torch.Tensor, rows: torch.Tensor, nodes: torch.Tensor, *, depth: int
    ) -> torch.Tensor:
        """Tell which nodes have an item of their row's mask below them.

        Args:
            leaf_counts: result of `cumulative_leaf_counts`; a single row applies to every row.
            rows, nodes: int64 [E], the batch row and the node of each query.
            depth: of the nodes, at least 1.

        Returns:
            bool [E].
        """
        first_leaf, rows = self._depths[depth - 1].first_leaf, rows.clamp(max=len(leaf_counts) - 1)
        return leaf_counts[rows, first_leaf[nodes + 1]] > leaf_counts[rows, first_leaf[nodes]]

    def num_items_below(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Count the items whose ID starts with each node's prefix, int64 in the shape of `nodes`."""
        if depth == 0:
            return torch.full_like(nodes, self.num_items)
        first_leaf = self._depths[depth - 1].first_leaf
        return first_leaf[nodes + 1] - first_leaf[nodes]

    def parents(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Return the parent of each node, int64 in the shape of `nodes`; `depth` is at least 1."""
        return torch.searchsorted(self._depths[depth - 1].first_child, nodes, right=True) - 1

    def prefixes(self, nodes: torch.Tensor, *, depth: int) -> torch.Tensor:
        """Return the codes of each node's prefix: int64 [...] -> int64 [..., depth]."""
        if depth == 0:
            return nodes.new_empty(*nodes.shape, 0)
        return self._codes[self._depths[depth - 1].example_item[nodes], :depth]

    def num_nodes(self, *, depth: int) -> int:
        """Count the distinct prefixes of length `depth`."""
        return 1 if depth == 0 else len(self._depths[depth - 1].code)

    def items(self, leaves: torch.Tensor) -> torch.Tensor:
        """Map leaves (nodes at depth L) of any shape to item indices, int64 in that shape."""
        return self._item_of_leaf[leaves]


@dataclass(frozen=True)
class _Depth:
    """The nodes at one depth, and how they hang below the nodes one level up.

    Attributes:
        first_child: int64 [nodes one level up + 1]; children of node n: first_child[n] .. first_child[n + 1] - 1.
        code: int64 [nodes], the last code of each node's prefix.
        first_leaf: int64 [nodes + 1]; leaves below node n: first_leaf[n] .. first_leaf[n + 1] - 1.
        node_of_item: int64 [N], the node that each item's ID passes through.
        example_item: int64 [nodes], one item below each node.
    """

    first_child: torch.Tensor
    code: torch.Tensor
    first_leaf: torch.Tensor
    node_of_item: torch.Tensor
    example_item: torch.Tensor


@dataclass(frozen=True)
class _Children:
    """The children of all rows' prefixes, end to end: ordered by row, then by prefix, then by code.

    Attributes:
        row: int64 [E], the batch row.
        prefix: int64 [E], which of the row's prefixes the child extends.
        node: int64 [E], the tree node of the extended prefix.
        log_probability: float [E], of the added code, in nats.
    """

    row: torch.Tensor
    prefix: torch.Tensor
    node: torch.Tensor
    log_probability: torch.Tensor

    def select(self, mask: torch.Tensor) -> _Children:
        """Return the children where `mask`, bool [E], is true."""
        return _Children(self.row[mask], self.prefix[mask], self.node[mask], self.log_probability[mask])


@dataclass(frozen=True)
class _Targets:
    """What a walk needs decoded at a level, ordered by row, then by prefix.

    Attributes:
        tokens: int64 [M], the newest decoder input of each target.
        rows: int64 [M], the batch row of each target.
        parents: int64 [M], which target of the level before each extends; None at the first level.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    parents: torch.Tensor | None


T = TypeVar("T")
# A walk yields once per level: its targets, or None if nothing has to be decoded. It gets their states, float [M, D].
_Walking: TypeAlias = Generator[_Targets | None, torch.Tensor | None, T]


def _run_together(
    model: GenerativeRecommender, cross_cache: CrossAttentionCache, walkings: Sequence[_Walking[T]]
) -> list[T]:
    """Run walks level by level, with one decoder pass per level for all of them, and return their results.

    Args:
        model: in evaluation mode.
        cross_cache: the rows of the first walk, then those of the second, and so on.
        walkings: walks of B rows each.
    """
    num_rows = cross_cache.num_rows // len(walkings)
    caches: list[SelfAttentionCache] = []  # one per earlier level
    first_target = dict.fromkeys(range(len(walkings)), 0)  # where each walk's targets of the level before begin
    results: dict[int, T] = {}
    waiting = {number: next(walking) for number, walking in enumerate(walkings)}
    while waiting:
        decoded = {number: targets for number, targets in waiting.items() if targets is not None}
        states: dict[int, torch.Tensor] = {}
        if decoded:
            tokens = torch.cat([targets.tokens for targets in decoded.values()])
            rows = torch.cat([targets.rows + number * num_rows for number, targets in decoded.items()])
            if caches:
                extended = [
                    targets.parents + first_target[number]
                    for number, targets in decoded.items()
                    if targets.parents is not None
                ]
                caches = [cache.select(torch.cat(extended)) for cache in caches]
            together, new_cache = model.decode_next(tokens, rows, cross_cache, caches)
            caches.append(new_cache)
            counts = [len(targets.tokens) for targets in decoded.values()]
            first_target = dict(zip(decoded, itertools.accumulate(counts, initial=0), strict=False))
            states = dict(zip(decoded, torch.split(together, counts), strict=True))
        for number in list(waiting):
            try:
                waiting[number] = walkings[number].send(states.get(number))
            except StopIteration as finished:
                results[number] = finished.value
                del waiting[number]
    return [results[number] for number in range(len(walkings))]


class _PrefixTreeWalk:
    """One walk from the root of the tree to its leaves; each `step` goes one level down.

    Args:
        model: in evaluation mode.
        tree: the existing IDs of `modality`.
        modality: "text" or "image".
        num_rows: B.
        device: of the model.
        excluded: bool [B, N], items removed from a row's distribution.
        eligible: bool [B, N], or [1, N] for all rows. A prefix without an eligible item is not followed, but keeps its
            share of the distribution.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        tree: PrefixTree,
        *,
        modality: str,
        num_rows: int,
        device: torch.device,
        excluded: torch.Tensor | None = None,
        eligible: torch.Tensor | None = None,
    ) -> None:
        self.tree, self.num_rows, self.device, self.num_levels = tree, num_rows, device, tree.num_levels
        self._model, self._modality = model, modality
        self._included_counts = None if excluded is None else tree.cumulative_leaf_counts(~excluded)
        self._eligible_counts = None
        if eligible is not None:
            mask = eligible if excluded is None else eligible & ~excluded
            self._eligible_counts = tree.cumulative_leaf_counts(mask)
        self._depth = 0
        # for each prefix of the previous step, its position among the targets of that step
        self._target = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)

    def step(self, nodes: torch.Tensor, parents: torch.Tensor | None = None) -> _Walking[_Children]:
        """Extend each prefix by every code that can follow it.

        Args:
            nodes: int64 [B, P], -1 where a row has fewer prefixes; the root, [B, 1], in the first step.
            parents: int64 [B, P], which prefix of the previous step each prefix extends; None in the first step.
        """
        depth, tree = self._depth, self.tree
        num_prefixes = nodes.shape[1]
        undecided = (nodes >= 0) & (tree.num_items_below(nodes.clamp(min=0), depth=depth) > 1)
        logits = yield from self._logits(nodes, parents, undecided)  # [number of undecided prefixes, K]
        flat = nodes.flatten()
        present = torch.nonzero(flat >= 0).flatten()
        position, child = tree.children(flat[present], depth=depth)
        parent = present[position]  # [E], positions in the flattened [B, P]
        row = torch.div(parent, num_prefixes, rounding_mode="floor")
        if self._included_counts is not None:
            included = tree.has_leaf_below(self._included_counts, row, child, depth=depth + 1)
            row, parent, child = row[included], parent[included], child[included]
        log_probability = torch.zeros(len(parent), device=nodes.device)
        decoded = torch.nonzero(undecided.flatten()[parent]).flatten()
        cells = undecided.flatten().cumsum(0)[parent[decoded]] - 1, tree.last_codes(child[decoded], depth=depth + 1)
        possible = logits[cells]
        logits.fill_(float("-inf"))  # in place: with wide beams, a copy is most of the memory of a request
        logits[cells] = possible
        log_probability[decoded] = torch.log_softmax(logits, dim=-1)[cells]
        self._depth += 1
        children = _Children(row, parent - row * num_prefixes, child, log_probability)
        if self._eligible_counts is None:
            return children
        return children.select(tree.has_leaf_below(self._eligible_counts, row, child, depth=depth + 1))

    def _logits(
        self, nodes: torch.Tensor, parents: torch.Tensor | None, undecided: torch.Tensor
    ) -> _Walking[torch.Tensor]:
        """Decode the next code of the undecided prefixes, bool [B, P].

        Returns:
            float [number of undecided prefixes, K], ordered by row, then by prefix.
        """
        rows, prefixes = torch.nonzero(undecided, as_tuple=True)  # [M] each, by row, then by prefix
        if not len(rows):  # then no longer prefix is undecided either, so no cache is needed
            yield None
            return torch.empty(0, self.tree.codebook_size, device=nodes.device)
        extended = None if parents is None else self._target[rows, parents[rows, prefixes]]
        codes = self.tree.prefixes(nodes[rows, prefixes], depth=self._depth)
        states = yield _Targets(self._model.last_tokens(codes, modality=self._modality), rows, extended)  # [M, D]
        assert states is not None
        self._target = (undecided.flatten().cumsum(0) - 1).view(undecided.shape)
        return self._model.code_logits(states[:, None], modality=self._modality, first_level=self._depth)[:, 0]


def _best_children(
    children: _Children, scores: torch.Tensor, *, beam_width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select the most probable children of each row.

    Args:
        children: of the row's beams.
        scores: float [B, P], of those beams.
        beam_width: W.

    Returns:
        Nodes, int64 [B, at most W] with -1 for none; their scores; and which beam each extends.
    """
    totals = scores[children.row, children.prefix] + children.log_probability  # [E]
    count = torch.bincount(children.row, minlength=len(scores))  # [B]
    column = torch.arange(len(totals), device=totals.device) - (count.cumsum(0) - count)[children.row]
    shape = len(scores), max(1, int(count.max()))
    table = torch.full(shape, float("-inf"), device=totals.device)
    nodes, prefixes = (torch.full(shape, -1, device=totals.device) for _ in range(2))
    table[children.row, column] = totals
    nodes[children.row, column] = children.node
    prefixes[children.row, column] = children.prefix
    # a stable sort, unlike topk, has one answer when scores are equal
    ordered = torch.sort(table, dim=1, descending=True, stable=True)
    best = ordered.indices[:, :beam_width]
    return nodes.gather(1, best), ordered.values[:, :beam_width], prefixes.gather(1, best)


def _distinct_nodes(nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """List each row's distinct valid nodes in ascending order: int64 [B, C] -> [B, at most C], padded with -1."""
    ordered = nodes.masked_fill(~valid, _NO_NODE).sort(dim=1).values
    repeated = torch.zeros_like(valid)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    distinct = ordered.masked_fill(repeated, _NO_NODE).sort(dim=1).values
    width = max(1, int((distinct != _NO_NODE).sum(dim=1).max()))
    return distinct[:, :width].masked_fill(distinct[:, :width] == _NO_NODE, -1)
