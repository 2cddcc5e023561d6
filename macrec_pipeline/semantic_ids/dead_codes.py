"""Dead codes: counting the codes that no item uses at each level, and reviving them during training.

A code that is not the nearest one of any item in the catalogue gets no gradient, so it would stay dead. Revival resets
its vector to the residual of an item, drawn with a probability proportional to the item's squared distance from its own
code, as k-means++ draws its centres.

Shapes (docs/notation.md): D input width, H latent width, K codes per level, L levels, N items.
"""

from __future__ import annotations

import numpy as np
import torch

from macrec_pipeline.semantic_ids.diagnostics import code_usage
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, latents_in_batches
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances


def count_dead_codes(codes: np.ndarray, *, codebook_size: int) -> list[int]:
    """Return for each level how many of the K codes no item has, for codes int64 [N, L]."""
    return [int(count) for count in (code_usage(codes, codebook_size=codebook_size) == 0).sum(axis=1)]


@torch.no_grad()
def revive_dead_codes(
    module: ModalityQuantizer,
    vectors: np.ndarray,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> int:
    """Reset every dead code of a modality, first level first, since each level changes the input of the next.

    Args:
        module: the modality's quantizer, changed in place.
        vectors: float32 [N, D], the whole catalogue.
        optimizer: of the codebooks; the moments of a reset code are set to zero.
        generator: draws the items, on the CPU.
        device: of the module.

    Returns:
        The number of codes that were reset. It is below the number of dead codes if too few items differ from their
        code's vector.
    """
    codebooks = module.quantizer.codebooks
    residual = torch.cat(list(latents_in_batches(module, vectors, device=device)))  # [N, H]
    num_revived = 0
    for level, codebook in enumerate(codebooks):
        errors, chosen = _squared_errors(residual, codebook)
        is_dead = torch.ones(len(codebook), dtype=torch.bool, device=device)
        is_dead[chosen] = False
        dead = is_dead.nonzero()[:, 0][: int(errors.count_nonzero())]
        if len(dead):
            drawn = torch.multinomial(errors.cpu(), len(dead), generator=generator)
            codebooks[level, dead] = residual[drawn.to(device)]
            for state in optimizer.state[codebooks].values():
                if state.shape == codebooks.shape:  # the moments, not the step count
                    state[level, dead] = 0
            num_revived += len(dead)
            _, chosen = _squared_errors(residual, codebook)
        residual = residual - codebook[chosen]
    return num_revived


def _squared_errors(residual: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each item's squared distance from its nearest code, float [N], and that code, int64 [N]."""
    errors, chosen = squared_distances(residual, codebook).min(dim=1)
    return errors.clamp(min=0), chosen  # rounding can make a distance slightly negative
