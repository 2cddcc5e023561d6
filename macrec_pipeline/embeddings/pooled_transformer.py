"""Any transformers model as a text encoder: its last hidden states, averaged over a text's tokens.

That is how the reference makes its text embeddings from LLaMA. A folder or a hub name goes in, a model leaves. No code
that comes with a model is run. Shapes: B batch, S tokens, D hidden size.
"""

from typing import Any

import torch

from macrec_pipeline.runtime.fast_layers import with_fast_products

# Tokenizers that know no limit say one of this order.
_NO_LIMIT = 10**9


class PooledTransformer:
    """A model with its tokenizer.

    Args:
        source: a folder, or a name at the hub.
        local: no request is made to any hub.
        dtype: of the weights, or "auto" for that in which they are stored.
        max_tokens: a text is cut off after so many tokens, or fewer where the model takes no more.

    Attributes:
        max_seq_length: the limit in force.
    """

    def __init__(
        self, source: str, *, local: bool, device: torch.device, dtype: torch.dtype | str, max_tokens: int
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        ensure_padding(self.tokenizer)
        self.tokenizer.padding_side = "right"  # see there; those made for writing pad at the left
        whole = AutoModel.from_pretrained(source, dtype=dtype, **options)
        # of a model that also writes, as T5, only the reading half
        model = whole.get_encoder() if whole.config.is_encoder_decoder else whole
        self.model = with_fast_products(model.to(device).eval())
        positions = getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT
        self.max_seq_length = min(max_tokens, positions, self.tokenizer.model_max_length)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Embed B texts as one batch: float32 [B, D]."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt"
        ).to(self.model.device)
        mask = tokens["attention_mask"]
        states = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state.float()  # [B, S, D]
        weights = mask[..., None].float()
        vectors: torch.Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # [B, D]
        return vectors


def ensure_padding(tokenizer: Any) -> None:
    """Give a generative model's tokenizer, such as LLaMA's, a token to pad with; the attention mask hides it."""
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"  # positions then start at the text, whatever it shares its batch with
