"""The generative recommender: T5's weights and layers, run over tensors shaped for this problem.

transformers' `T5ForConditionalGeneration` holds the parameters, so a checkpoint is an ordinary T5 (MACRec section 3.3).
Its forward pass decodes one sequence for one encoder input; here many targets (the prefixes' next items in training,
the beams in decoding, the catalogue in exact scoring) are decoded from one encoder pass, so the layers are walked by
hand. A test holds that the numbers are those of transformers' own forward. The item-causal encoding has one table more.

Shapes: B rows, S encoder tokens, J targets a row, L levels, K codes, D d_model, A heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.layers import (
    attention_bias,
    cross_attention,
    feed_forward,
    heads,
    norm,
    self_attention,
)
from macrec_pipeline.recommender.model.vocabulary import PADDING, Vocabulary
from macrec_pipeline.recommender.training.batching import FIRST_ITEM_LAG, HIDDEN_LAG, num_lags
from macrec_pipeline.runtime.fast_dropout import ByteDropout
from macrec_pipeline.runtime.fast_layers import with_fast_products

if TYPE_CHECKING:
    from pathlib import Path

    from macrec_pipeline.config import RecommenderConfig

# Logits that the slowest and the fastest head lose at first for each item further back.
SLOWEST_DECAY, FASTEST_DECAY = 0.02, 1.28


@dataclass(frozen=True)
class CrossAttentionCache:
    """An encoder pass as the decoder's layers look at it, worked out once for all that is decoded from it.

    Attributes:
        keys, values: float [B, A, S, d_kv], one a decoder layer.
        bias: float, broadcastable to [B, A, J, S], added where a target looks at an encoder token; None for nothing.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias: torch.Tensor | None

    def rows(self, chosen: slice) -> CrossAttentionCache:
        """Of some of the histories."""
        bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[chosen]
        return CrossAttentionCache([each[chosen] for each in self.keys], [each[chosen] for each in self.values], bias)

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.keys[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.keys[0].device


@dataclass(frozen=True)
class SelfAttentionCache:
    """What the decoder's layers keep of one position of J targets a row, for those that come after it.

    Attributes:
        keys, values: float [B, J, A * d_kv], one a decoder layer.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def of(self, targets: torch.Tensor) -> SelfAttentionCache:
        """Those of other targets: int64 [B, J'] of places among the J."""
        row = torch.arange(len(targets), device=targets.device)[:, None]

        def picked(each: torch.Tensor) -> torch.Tensor:
            places = (row * each.shape[1] + targets).flatten()
            return each.flatten(0, 1).index_select(0, places).view(*targets.shape, -1)

        return SelfAttentionCache([picked(each) for each in self.keys], [picked(each) for each in self.values])


class GenerativeRecommender(nn.Module):
    """T5 over semantic ID tokens.

    Args:
        vocabulary: the tokens; fixes the embedding's size.
        config: the sizes, and `encoding`; the training settings play no part here.
        generator: draws the initial weights; None leaves them to be loaded.
    """

    def __init__(
        self, vocabulary: Vocabulary, config: RecommenderConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.config = config
        with _fixed_global_seed(generator):
            self.t5 = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=vocabulary.size,
                    d_model=config.d_model,
                    d_kv=config.d_kv,
                    d_ff=config.d_ff,
                    num_heads=config.num_heads,
                    num_layers=config.num_encoder_layers,
                    num_decoder_layers=config.num_decoder_layers,
                    dropout_rate=config.dropout,
                    pad_token_id=PADDING,
                    eos_token_id=PADDING,
                )
            )
        self.recency: nn.Parameter | None = None
        if config.encoding == "item_causal":
            self.recency = nn.Parameter(_initial_recency(vocabulary.num_levels, config))
        self.dropout_generator = torch.Generator()
        for module in list(self.t5.modules()):
            if isinstance(getattr(module, "dropout", None), nn.Dropout):
                module.dropout = ByteDropout(config.dropout, self.dropout_generator)
        with_fast_products(self.t5)

    def save_weights(self, path: Path) -> None:
        """Write the parameters as safetensors; the tied embedding is written once."""
        tied = {"t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight"}
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items() if name not in tied}
        save_file(state, path)

    def load_weights(self, path: Path) -> None:
        """Read what `save_weights` wrote; raises `StorageError` if it is another model's."""
        missing, unexpected = self.load_state_dict(load_file(path), strict=False)
        lacking = [name for name in missing if not name.endswith(("embed_tokens.weight", "lm_head.weight"))]
        if lacking or unexpected:
            raise StorageError(f"{path} holds the weights of another model: lacks {lacking}, has {unexpected}.")

    def encode(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode histories.

        Args:
            tokens: int64 [B, S].
            mask: bool, broadcastable to [B, 1, S, S]; True where a query may look at a key. None: everywhere.

        Returns:
            float [B, S, D].
        """
        stack: Any = self.t5.encoder
        states = stack.dropout(self.t5.shared(tokens))  # [B, S, D]
        bias = attention_bias(stack, tokens.shape[1], mask)
        for block in stack.block:
            states = self_attention(block, states, bias)
            states = feed_forward(block, states)
        return cast(torch.Tensor, stack.dropout(norm(stack.final_layer_norm, states)))

    def recency_bias(self, lags: torch.Tensor) -> torch.Tensor:
        """What item-causal cross-attention adds for the lag of a token.

        T5's cross-attention has no positions: as published, the bidirectional encoder tells a token how far it is from
        the end. An item-causal encoder cannot know which target will look, so the decoder must be told.

        Args:
            lags: int64 [..., S] of `item_causal_views`.

        Returns:
            float [..., A, 1 or J, S] for lags [..., 1 or J, S]; minus infinity where the lag is hidden.
        """
        assert self.recency is not None, "only an item-causal model has a recency bias"
        bias = F.embedding(lags, self.recency).masked_fill((lags == HIDDEN_LAG)[..., None], float("-inf"))
        return bias.movedim(-1, -3)

    def cross_attention_cache(self, states: torch.Tensor, bias: torch.Tensor | None = None) -> CrossAttentionCache:
        """What the decoder needs of an encoder pass: float [B, S, D] from `encode`, and the bias towards it."""
        layers = [block.layer[1].EncDecAttention for block in cast(Any, self.t5.decoder).block]
        # laid out for the products, or each level's would copy them anew
        return CrossAttentionCache(
            [heads(attention, attention.k(states)).contiguous() for attention in layers],
            [heads(attention, attention.v(states)).contiguous() for attention in layers],
            bias,
        )

    def decode(self, inputs: torch.Tensor, memory: CrossAttentionCache) -> torch.Tensor:
        """Decode J targets a row from one encoder pass; no target sees another.

        Args:
            inputs: int64 [B, J, T], start token first, T <= L.
            memory: from `cross_attention_cache`.

        Returns:
            float [B, J, T, D], scaled so that `code_logits` may follow.
        """
        rows, num_targets, length = inputs.shape
        stack: Any = self.t5.decoder
        states = stack.dropout(self.t5.shared(inputs.reshape(rows * num_targets, length)))  # [B*J, T, D]
        causal = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        own_bias = attention_bias(stack, length, causal)
        for block, keys, values in zip(stack.block, memory.keys, memory.values, strict=True):
            states = self_attention(block, states, own_bias)
            states = cross_attention(block, states, keys, values, memory.bias)
            states = feed_forward(block, states)
        states = stack.dropout(norm(stack.final_layer_norm, states))
        if self.t5.config.scale_decoder_outputs:
            states = states * self.t5.config.d_model**-0.5
        return cast(torch.Tensor, states.view(rows, num_targets, length, -1))

    def decode_next(
        self, tokens: torch.Tensor, memory: CrossAttentionCache, past: list[SelfAttentionCache]
    ) -> tuple[torch.Tensor, SelfAttentionCache]:
        """The last position of `decode`, if what the layers made of the ones before is at hand; for evaluation mode.

        Args:
            tokens: int64 [B, J], the last of each target's decoder inputs.
            memory: from `cross_attention_cache`.
            past: of the same targets, the positions before, first one first.

        Returns:
            float [B, J, D], scaled so that `code_logits` may follow, and what is to be kept of this position.
        """
        stack: Any = self.t5.decoder
        states = self.t5.shared(tokens)  # [B, J, D]
        own_bias = attention_bias(stack, len(past) + 1, None)[0, :, -1].T  # [T, A], as the last of T positions looks
        position = SelfAttentionCache([], [])
        for number, block in enumerate(stack.block):
            attention = block.layer[0].SelfAttention
            normed = norm(block.layer[0].layer_norm, states)
            query, key, value = (project(normed) for project in (attention.q, attention.k, attention.v))
            position.keys.append(key)
            position.values.append(value)
            keys = [*(before.keys[number] for before in past), key]  # T of [B, J, A * d_kv]
            values = [*(before.values[number] for before in past), value]
            # T is at most L: as products of matrices so small would cost more than their numbers
            scores = [(each * query).unflatten(-1, (attention.n_heads, -1)).sum(dim=-1) for each in keys]
            shares = (torch.stack(scores, dim=2) + own_bias).softmax(dim=2)[..., None]  # [B, J, T, A, 1]
            mixed = sum(
                share * each.unflatten(-1, (attention.n_heads, -1))
                for share, each in zip(shares.unbind(dim=2), values, strict=True)
            )
            states = states + attention.o(mixed.flatten(2))
            states = cross_attention(block, states, memory.keys[number], memory.values[number], memory.bias)
            states = feed_forward(block, states)
        states = norm(stack.final_layer_norm, states)
        if self.t5.config.scale_decoder_outputs:
            states = states * self.t5.config.d_model**-0.5
        return states, position

    def code_logits(self, states: torch.Tensor, *, modality: str, first_level: int = 0) -> torch.Tensor:
        """Logits over the K codes of each level: float [..., T, D] -> [..., T, K], for T levels from `first_level`."""
        words = self.vocabulary
        start = words.first_code_token(modality) + first_level * words.codebook_size
        stop = start + states.shape[-2] * words.codebook_size
        codes = self.t5.shared.weight[start:stop].view(states.shape[-2], words.codebook_size, -1)  # [T, K, D]
        return torch.einsum("...td,tkd->...tk", states, codes)

    def last_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """The last of `decoder_inputs`: int64 [..., T] -> [...]."""
        return self.decoder_inputs(codes, modality=modality)[..., -1]

    def decoder_inputs(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Codes int64 [..., T] chosen so far -> decoder inputs int64 [..., T + 1], start token first."""
        words = self.vocabulary
        levels = torch.arange(codes.shape[-1], device=codes.device)
        tokens = codes + levels * words.codebook_size + words.first_code_token(modality)
        return F.pad(tokens, (1, 0), value=PADDING)


class _fixed_global_seed:  # noqa: N801 - reads as a statement
    """transformers draws initial weights from the global generator: seed it for the while, then put it back."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        if self._generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._state)


def _initial_recency(num_levels: int, config: RecommenderConfig) -> torch.Tensor:
    """Heads that forget at different speeds, as in ALiBi (Press et al. 2022): float [number of lags, A].

    The slowest head sees the whole window, the fastest the last item or two. Learnt from zero it takes far longer.
    """
    slopes = torch.logspace(math.log10(SLOWEST_DECAY), math.log10(FASTEST_DECAY), config.num_heads)
    bias = torch.zeros(num_lags(num_levels, config), config.num_heads)
    items_back = torch.arange(config.history_length).repeat_interleave(num_levels)
    bias[FIRST_ITEM_LAG:] = -items_back[:, None] * slopes
    return bias
