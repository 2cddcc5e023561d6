"""Uses any transformers model as a text encoder: averages its last hidden states over the tokens of a text.

The reference implementation computes its text embeddings from LLaMA in this way. No code that comes with a model is
run. Shapes (docs/notation.md): B batch rows, S encoder tokens, D width of the hidden states.
"""

from typing import Any

import torch

from macrec_pipeline.runtime.fast_layers import use_fast_linear

# A tokenizer without a limit reports one of about this size.
_NO_LIMIT = 10**9


class PooledTransformer:
    """A model with its tokenizer, loaded.

    Args:
        source: a folder, or a model's name at the hub.
        local: True to make no request to any hub.
        device: device of the model.
        dtype: dtype of the weights, or "auto" for the one in which they are stored.
        max_tokens: number of tokens after which a text is cut off; lowered if the model accepts fewer.

    Attributes:
        max_seq_length: the number of tokens after which texts are cut off.
    """

    def __init__(
        self, source: str, *, local: bool, device: torch.device, dtype: torch.dtype | str, max_tokens: int
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        ensure_padding(self.tokenizer)
        self.tokenizer.padding_side = "right"  # as in `ensure_padding`; tokenizers of generative models pad on the left
        full_model = AutoModel.from_pretrained(source, dtype=dtype, **options)
        # of an encoder-decoder such as T5, only the encoder is used
        model = full_model.get_encoder() if full_model.config.is_encoder_decoder else full_model
        self.model = use_fast_linear(model.to(device).eval())
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
    """Give the tokenizer of a generative model such as LLaMA a padding token, which the attention mask hides."""
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"  # the positions of a text then do not depend on the rest of its batch
