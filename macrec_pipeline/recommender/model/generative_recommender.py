"""The generative recommender: T5's parameters and layers, run over tensors shaped for this problem.

transformers' `T5ForConditionalGeneration` holds the parameters, so a checkpoint is an ordinary T5 (MACRec section 3.3).
Its forward pass decodes one sequence per encoder input. Here many targets are decoded from one encoder pass (the next
items of all prefixes in training, the beams in retrieval, the catalogue in exact scoring), so this module calls T5's
layers itself. A test checks that the numbers equal those of transformers' own forward pass. The item-causal encoding
adds one table of parameters, the recency bias.

Shapes (docs/notation.md): A heads, B batch rows, D hidden width, J targets per row, K codes, L levels, L' decoder
positions (at most L), M entries of all rows without padding, Q query vectors, S encoder tokens, T history items.
`d_kv` is the width of one head.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.history_encoding import (
    FIRST_ITEM_LAG,
    HIDDEN_LAG,
    HISTORY_TASKS,
    PADDING,
    HistoryBatch,
    ItemCodes,
    Vocabulary,
    item_causal_mask_and_lags,
    num_lags,
    padding_mask,
)
from macrec_pipeline.runtime.fast_layers import ByteDropout, use_fast_linear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from macrec_pipeline.config import Task

# Initial recency bias: the logits that the slowest and the fastest head lose per item further back.
SLOWEST_DECAY, FASTEST_DECAY = 0.02, 1.28


@dataclass(frozen=True)
class ModelSpec:
    """What determines the network: its sizes, and how and for which tasks it reads histories.

    The fields are the settings of the same names in the section `recommender`.
    """

    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    dropout: float
    history_length: int
    encoding: Literal["exact", "item_causal"]
    tasks: tuple[Task, ...]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ModelSpec:
        """Pick the fields out of the section `recommender`, as plain values. Raise `KeyError` if one is missing."""
        values = {field.name: settings[field.name] for field in fields(cls)}
        return cls(**values | {"tasks": tuple(values["tasks"])})

    @property
    def receptive_field(self) -> int:
        """Most recent items of a history that a target depends on.

        Each item-causal encoder layer reaches `history_length - 1` items further back.
        """
        if self.encoding == "exact":
            return self.history_length
        return self.history_length + self.num_encoder_layers * (self.history_length - 1)


@dataclass(frozen=True)
class CrossAttentionCache:
    """Keys and values of an encoder pass for the decoder's layers, computed once for all that is decoded from it.

    Attributes:
        keys, values: float [B, A, S, d_kv], one per decoder layer.
        bias: float, broadcastable to [B, A, J, S], added to the attention logits of a target over the encoder's
            tokens; None for zero.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias: torch.Tensor | None

    def rows(self, chosen: slice) -> CrossAttentionCache:
        """Return the cache of some of the histories."""
        bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[chosen]
        return CrossAttentionCache([each[chosen] for each in self.keys], [each[chosen] for each in self.values], bias)

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.keys[0])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.keys[0].device


@dataclass(frozen=True)
class SelfAttentionCache:
    """Keys and values of one decoder position of M targets, for the positions after it.

    Attributes:
        keys, values: float [M, A * d_kv], one per decoder layer.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def select(self, targets: torch.Tensor) -> SelfAttentionCache:
        """Return the cache of other targets, given as indices into the M targets."""
        return SelfAttentionCache(
            [each.index_select(0, targets) for each in self.keys],
            [each.index_select(0, targets) for each in self.values],
        )


@dataclass(frozen=True)
class PackedRows:
    """Where the entries of a list stand in a table of B rows and J columns, whose other cells are padding.

    Attributes:
        num_rows, num_columns: B and J.
        cells: int64 [M], the number of each entry's cell, row by row; None if the table has no padding.
    """

    num_rows: int
    num_columns: int
    cells: torch.Tensor | None

    @staticmethod
    def of_mask(mask: torch.Tensor) -> PackedRows:
        """Pack the cells where a mask, bool [B, J], is True."""
        num_rows, num_columns = mask.shape
        cells = None if bool(mask.all()) else torch.nonzero(mask.flatten()).flatten()
        return PackedRows(num_rows, num_columns, cells)

    @staticmethod
    def of_rows(rows: torch.Tensor, *, num_rows: int) -> PackedRows:
        """Let each row have its entries in its first columns, given the row of each entry, int64 [M], ascending."""
        count = torch.bincount(rows, minlength=num_rows)  # [B]
        num_columns = int(count.max())
        if num_columns * num_rows == len(rows):
            return PackedRows(num_rows, num_columns, None)
        column = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
        return PackedRows(num_rows, num_columns, rows * num_columns + column)

    def table(self, entries: torch.Tensor) -> torch.Tensor:
        """Lay out float [M, D] as [B, J, D], with zeros as padding."""
        shape = self.num_rows, self.num_columns, entries.shape[-1]
        if self.cells is None:
            return entries.view(shape)
        return entries.new_zeros(shape).flatten(0, 1).index_copy_(0, self.cells, entries).view(shape)

    def entries(self, table: torch.Tensor) -> torch.Tensor:
        """Collect [M, D] from float [B, J, D]."""
        return table.flatten(0, 1) if self.cells is None else table.flatten(0, 1).index_select(0, self.cells)


class GenerativeRecommender(nn.Module):
    """T5 over semantic ID tokens.

    Args:
        vocabulary: the tokens; fixes the size of the embedding.
        spec: the sizes, the encoding and the tasks.
        generator: draws the initial weights; None if weights will be loaded.
    """

    def __init__(self, vocabulary: Vocabulary, spec: ModelSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.spec = spec
        with _seeded_global_generator(generator):
            self.t5 = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=vocabulary.size,
                    d_model=spec.d_model,
                    d_kv=spec.d_kv,
                    d_ff=spec.d_ff,
                    num_heads=spec.num_heads,
                    num_layers=spec.num_encoder_layers,
                    num_decoder_layers=spec.num_decoder_layers,
                    dropout_rate=spec.dropout,
                    pad_token_id=PADDING,
                    eos_token_id=PADDING,
                )
            )
        self.recency: nn.Parameter | None = None
        if spec.encoding == "item_causal":
            self.recency = nn.Parameter(_initial_recency_bias(vocabulary.num_levels, spec))
        self.dropout_generator = torch.Generator()
        for module in list(self.t5.modules()):
            if isinstance(getattr(module, "dropout", None), nn.Dropout):
                module.dropout = ByteDropout(spec.dropout, self.dropout_generator)
        use_fast_linear(self.t5)

    def save_weights(self, path: Path) -> None:
        """Write the parameters as safetensors; the tied embedding is written once."""
        tied = {"t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight"}
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items() if name not in tied}
        save_file(state, path)

    def load_weights(self, path: Path) -> None:
        """Read what `save_weights` wrote. Raise `StorageError` if the file holds the weights of another model."""
        missing, unexpected = self.load_state_dict(load_file(path), strict=False)
        missing = [name for name in missing if not name.endswith(("embed_tokens.weight", "lm_head.weight"))]
        if missing or unexpected:
            raise StorageError(
                f"{path} holds the weights of another model: the tensors {missing} are missing, and "
                f"{unexpected} are unexpected."
            )

    def encode_histories(self, items: ItemCodes, batch: HistoryBatch, *, tasks: Sequence[Task]) -> CrossAttentionCache:
        """Encode a batch of histories into what its targets are decoded from.

        Args:
            items: the catalogue's codes.
            batch: its rows are divided into equal runs, one per task.
            tasks: history tasks with equally long prompts.

        Returns:
            The cache, with the bias of each target over the encoder's tokens.
        """
        sources = [HISTORY_TASKS[task][0] for task in tasks]
        tokens = torch.cat(
            [
                self.vocabulary.encoder_tokens(task, items.codes[modality][history], modality=modality)
                for task, modality, history in zip(tasks, sources, batch.history.chunk(len(tasks)), strict=True)
            ]
        )  # [B, S]
        num_items, num_levels = batch.history.shape[1], self.vocabulary.num_levels
        num_prompts = tokens.shape[1] - num_items * num_levels
        if self.spec.encoding == "exact":
            if not batch.padded:
                return self.cross_attention_cache(self.encode(tokens))
            is_token = padding_mask(
                batch.lengths, num_items=num_items, num_levels=num_levels, num_prompts=num_prompts
            )  # [B, S]
            bias = _mask_to_bias(is_token)[:, None, None, :]
            if self.training:
                return self.cross_attention_cache(self.encode(tokens, is_token[:, None, None, :]), bias)
            return self._packed_cache(tokens, is_token[:, None, None, :], is_token, bias)
        mask, lags = item_causal_mask_and_lags(
            num_items, num_levels=num_levels, num_prompts=num_prompts, history_length=self.spec.history_length
        )
        lags = lags.to(tokens.device)  # [T, S]
        # a batch whose only target is the last item has rows that end at different positions
        lags = lags[batch.lengths - 1][:, None, :] if batch.only_last else lags[batch.target_offset :]
        if batch.padded and batch.only_last and not self.training:
            is_token = padding_mask(
                batch.lengths, num_items=num_items, num_levels=num_levels, num_prompts=num_prompts
            )  # [B, S]
            return self._packed_cache(tokens, mask.to(tokens.device), is_token, self.recency_bias(lags))
        return self.cross_attention_cache(self.encode(tokens, mask.to(tokens.device)), self.recency_bias(lags))

    def encode(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Run the encoder.

        Args:
            tokens: int64 [B, S].
            mask: bool, broadcastable to [B, 1, S, S], True where a query may attend to a key; None for everywhere.

        Returns:
            float [B, S, D].
        """
        stack: Any = self.t5.encoder
        states = stack.dropout(self.t5.shared(tokens))  # [B, S, D]
        bias = _position_bias(stack, tokens.shape[1], mask)
        for block in stack.block:
            states = _self_attention(block, states, bias)
            states = _feed_forward(block, states)
        return cast(torch.Tensor, stack.dropout(_norm(stack.final_layer_norm, states)))

    def _packed_cache(
        self, tokens: torch.Tensor, mask: torch.Tensor, is_token: torch.Tensor, bias: torch.Tensor
    ) -> CrossAttentionCache:
        """Compute `cross_attention_cache(encode(tokens, mask), bias)` without work for padding; in evaluation mode.

        All layers but attention see only the tokens where `is_token`, bool [B, S], is True. Keys and values of the
        others, which no target attends to, are zero.
        """
        packed, stack = PackedRows.of_mask(is_token), cast(Any, self.t5.encoder)
        states = packed.entries(self.t5.shared(tokens))  # [M, D]
        position_bias = _position_bias(stack, tokens.shape[1], mask)
        for block in stack.block:
            states = _self_attention(block, states, position_bias, packed)
            states = _feed_forward(block, states)
        return self.cross_attention_cache(_norm(stack.final_layer_norm, states), bias, packed)

    def recency_bias(self, lags: torch.Tensor) -> torch.Tensor:
        """Return the bias that item-causal cross-attention adds for the lag of each token.

        T5's cross-attention has no positions. In the published model the state of each token from the bidirectional
        encoder contains its distance from the end of the history. An item-causal encoder cannot know which target will
        attend to a token, so cross-attention needs this bias to know the distance.

        Args:
            lags: int64 [..., 1 or J, S] of `item_causal_mask_and_lags`.

        Returns:
            float [..., A, 1 or J, S], minus infinity where the lag is hidden.
        """
        assert self.recency is not None, "only an item-causal model has a recency bias"
        bias = F.embedding(lags, self.recency).masked_fill((lags == HIDDEN_LAG)[..., None], float("-inf"))
        return bias.movedim(-1, -3)

    def cross_attention_cache(
        self, states: torch.Tensor, bias: torch.Tensor | None = None, packed: PackedRows | None = None
    ) -> CrossAttentionCache:
        """Compute the decoder's cross-attention keys and values.

        Args:
            states: float [B, S, D] from `encode`, or [M, D] with `packed`.
            bias: of the cache.
            packed: where the M states stand in [B, S].
        """
        layers = [block.layer[1].EncDecAttention for block in cast(Any, self.t5.decoder).block]
        # contiguous, so that the matrix products of each level need not copy them again
        return CrossAttentionCache(
            [_split_heads(attention, _table(attention.k(states), packed)).contiguous() for attention in layers],
            [_split_heads(attention, _table(attention.v(states), packed)).contiguous() for attention in layers],
            bias,
        )

    def decode(self, inputs: torch.Tensor, cross_cache: CrossAttentionCache) -> torch.Tensor:
        """Run the decoder for J targets per row from one encoder pass; no target attends to another.

        Args:
            inputs: int64 [B, J, L'], start token first.
            cross_cache: of the B histories.

        Returns:
            float [B, J, L', D], scaled for `code_logits`.
        """
        num_rows, num_targets, length = inputs.shape
        stack: Any = self.t5.decoder
        states = stack.dropout(self.t5.shared(inputs.reshape(num_rows * num_targets, length)))  # [B * J, L', D]
        causal_mask = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        self_bias = _position_bias(stack, length, causal_mask)
        for block, keys, values in zip(stack.block, cross_cache.keys, cross_cache.values, strict=True):
            states = _self_attention(block, states, self_bias)
            states = _cross_attention(block, states, keys, values, cross_cache.bias)
            states = _feed_forward(block, states)
        states = stack.dropout(_norm(stack.final_layer_norm, states))
        if self.t5.config.scale_decoder_outputs:
            states = states * self.t5.config.d_model**-0.5
        return cast(torch.Tensor, states.view(num_rows, num_targets, length, -1))

    def decode_next(
        self,
        tokens: torch.Tensor,
        rows: torch.Tensor,
        cross_cache: CrossAttentionCache,
        self_caches: list[SelfAttentionCache],
    ) -> tuple[torch.Tensor, SelfAttentionCache]:
        """Decode one more position of each target, given the cache of those before; for evaluation mode.

        Rows may have different numbers of targets. Only cross-attention pads them to the same number.

        Args:
            tokens: int64 [M], the newest decoder input of each target.
            rows: int64 [M], ascending, the row of each target.
            cross_cache: of the B histories.
            self_caches: one per earlier position of the same targets, first position first.

        Returns:
            float [M, D], which equals the last position of `decode`, and the cache of this position.
        """
        stack: Any = self.t5.decoder
        packed = PackedRows.of_rows(rows, num_rows=cross_cache.num_rows)
        states = self.t5.shared(tokens)  # [M, D]
        # bias of the newest position over itself and those before it: [L', A]
        self_bias = _position_bias(stack, len(self_caches) + 1, None)[0, :, -1].T
        new_cache = SelfAttentionCache([], [])
        for layer, block in enumerate(stack.block):
            cross_keys, cross_values = cross_cache.keys[layer], cross_cache.values[layer]
            attention = block.layer[0].SelfAttention
            normed = _norm(block.layer[0].layer_norm, states)
            query, key, value = (project(normed) for project in (attention.q, attention.k, attention.v))
            new_cache.keys.append(key)
            new_cache.values.append(value)
            keys = [*(cache.keys[layer] for cache in self_caches), key]  # L' of [M, A * d_kv]
            values = [*(cache.values[layer] for cache in self_caches), value]
            # elementwise: L' is at most L, and a matrix product this small costs more than its arithmetic
            scores = [(each * query).unflatten(-1, (attention.n_heads, -1)).sum(dim=-1) for each in keys]
            weights = (torch.stack(scores, dim=1) + self_bias).softmax(dim=1)[..., None]  # [M, L', A, 1]
            mixed = sum(
                weight * each.unflatten(-1, (attention.n_heads, -1))
                for weight, each in zip(weights.unbind(dim=1), values, strict=True)
            )
            states = states + attention.o(mixed.flatten(1))
            states = _cross_attention(block, states, cross_keys, cross_values, cross_cache.bias, packed)
            states = _feed_forward(block, states)
        states = _norm(stack.final_layer_norm, states)
        if self.t5.config.scale_decoder_outputs:
            states = states * self.t5.config.d_model**-0.5
        return states, new_cache

    def code_logits(self, states: torch.Tensor, *, modality: str, first_level: int = 0) -> torch.Tensor:
        """Return the logits over the K codes of L' levels from `first_level`: float [..., L', D] -> [..., L', K]."""
        num_levels, codebook_size = states.shape[-2], self.vocabulary.codebook_size
        start = self.vocabulary.first_code_token(modality) + first_level * codebook_size
        code_vectors = self.t5.shared.weight[start : start + num_levels * codebook_size]
        return torch.einsum("...td,tkd->...tk", states, code_vectors.view(num_levels, codebook_size, -1))

    def last_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Return the last of `decoder_inputs`: int64 [..., L'] -> [...]."""
        return self.decoder_inputs(codes, modality=modality)[..., -1]

    def decoder_inputs(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Map the codes chosen so far, int64 [..., L'], to decoder inputs [..., L' + 1] with the start token first."""
        levels = torch.arange(codes.shape[-1], device=codes.device)
        tokens = codes + levels * self.vocabulary.codebook_size + self.vocabulary.first_code_token(modality)
        return F.pad(tokens, (1, 0), value=PADDING)


@contextmanager
def _seeded_global_generator(generator: torch.Generator | None) -> Iterator[None]:
    """Seed torch's global generator, from which transformers draws initial weights, and restore it afterwards."""
    state = torch.get_rng_state()
    if generator is not None:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _initial_recency_bias(num_levels: int, spec: ModelSpec) -> torch.Tensor:
    """Return float [number of lags, A], with heads that forget at different speeds as in ALiBi (Press et al. 2022).

    The slowest head attends to the whole window, the fastest to the last item or two. Learning this from zero takes far
    longer.
    """
    slopes = torch.logspace(math.log10(SLOWEST_DECAY), math.log10(FASTEST_DECAY), spec.num_heads)
    bias = torch.zeros(num_lags(num_levels=num_levels, history_length=spec.history_length), spec.num_heads)
    items_back = torch.arange(spec.history_length).repeat_interleave(num_levels)
    bias[FIRST_ITEM_LAG:] = -items_back[:, None] * slopes
    return bias


# T5's layers. Each function takes a block of transformers' stack, whose weights and dropout it uses, and hidden states.


def _position_bias(stack: Any, length: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Return T5's relative position bias, minus infinity where the mask is False: float [1 or B, A, S, S]."""
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    return cast(torch.Tensor, bias if mask is None else bias + _mask_to_bias(mask))


def _mask_to_bias(mask: torch.Tensor) -> torch.Tensor:
    """Map True to 0 and False to minus infinity."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


def _norm(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """Apply T5's root-mean-square norm; in inference and on a GPU by one call instead of six."""
    if states.device.type == "cpu" and torch.is_grad_enabled():
        return cast(torch.Tensor, layer(states))
    return F.rms_norm(states, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _self_attention(
    block: Any, states: torch.Tensor, bias: torch.Tensor, packed: PackedRows | None = None
) -> torch.Tensor:
    """Let the positions of float [B, S, D] attend to each other, with a bias broadcastable to [B, A, S, S].

    With `packed`, the states are [M, D], without padding.
    """
    layer = block.layer[0]
    attention = layer.SelfAttention
    normed = _norm(layer.layer_norm, states)
    query, key, value = (
        _split_heads(attention, _table(project(normed), packed)) for project in (attention.q, attention.k, attention.v)
    )
    mixed = _attend(query, key, value, bias)
    return cast(torch.Tensor, states + layer.dropout(attention.o(mixed if packed is None else packed.entries(mixed))))


def _cross_attention(
    block: Any,
    states: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    packed: PackedRows | None = None,
) -> torch.Tensor:
    """Let the targets' positions [B * J, L', D] attend to their row's history, as one long query per row.

    With `packed`, the states are those of single positions, [M, D].
    """
    layer = block.layer[1]
    attention = layer.EncDecAttention
    normed = _norm(layer.layer_norm, states)
    if packed is None:
        normed = normed.view(len(keys), -1, states.shape[-1])  # [B, J * L', D]
    query = _split_heads(attention, _table(attention.q(normed), packed))
    mixed = _attend(query, keys, values, bias)
    mixed = attention.o(mixed if packed is None else packed.entries(mixed)).view_as(states)
    return cast(torch.Tensor, states + layer.dropout(mixed))


def _table(entries: torch.Tensor, packed: PackedRows | None) -> torch.Tensor:
    """Lay out packed entries as a table; leave a table as it is."""
    return entries if packed is None else packed.table(entries)


def _feed_forward(block: Any, states: torch.Tensor) -> torch.Tensor:
    """Apply the feed-forward layer without transformers' cast to the weights' dtype, which halves autocast's gain."""
    layer = block.layer[-1]
    dense = layer.DenseReluDense
    hidden = dense.dropout.after_relu(dense.wi(_norm(layer.layer_norm, states)))
    return cast(torch.Tensor, states + layer.dropout(dense.wo(hidden)))


def _split_heads(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """Map [B, S, A * d_kv] to [B, A, S, d_kv]."""
    return projected.view(*projected.shape[:-1], attention.n_heads, -1).transpose(1, 2)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """T5's unscaled attention: [B, A, Q, d_kv] over [B, A, S, d_kv] -> [B, Q, A * d_kv].

    The bias is broadcastable to [B, A, number of runs, S]; each of its rows applies to a run of consecutive queries,
    all of equal length. Fused attention kernels are not used: they reject a trained bias, or are slower on the CPU.
    """
    scores = query @ key.transpose(2, 3)
    if bias is not None:
        runs = scores.view(*scores.shape[:2], bias.shape[-2], -1, scores.shape[-1])  # [B, A, runs, run length, S]
        scores = (runs + bias.unsqueeze(-2)).flatten(2, 3)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
