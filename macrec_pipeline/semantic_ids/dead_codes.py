"""Codes that nobody uses: how many there are at each level, and how they are brought back.

A code that no item of the whole catalogue is nearest to gets no gradient and stays dead. Revival resets it to the
residual of an item, drawn in proportion to its squared distance from its own code, as k-means++ draws its centres.

Shapes: N items, L levels, K codes a level, H latent.
"""

from __future__ import annotations

import numpy as np
import torch

from macrec_pipeline.semantic_ids.diagnostics import code_usage
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, latents_in_batches
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances


def dead_codes(codes: np.ndarray, *, codebook_size: int) -> list[int]:
    """How many of the K codes of each level no item has, for codes int64 [N, L]."""
    return [int(count) for count in (code_usage(codes, codebook_size=codebook_size) == 0).sum(axis=1)]


@torch.no_grad()
def reset_dead_codes(
    module: ModalityQuantizer,
    vectors: np.ndarray,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> int:
    """Reset every dead code of a modality, from the first level on, since each level changes what enters the next.

    Args:
        vectors: float32 [N, D], the whole catalogue.
        optimizer: holds the codebooks; what it remembers of a code is forgotten with it.
        generator: draws the items, on the CPU.

    Returns:
        How many codes were reset; less than were dead if too few items are away from their code.
    """
    codebooks = module.quantizer.codebooks
    residual = torch.cat(list(latents_in_batches(module, vectors, device=device)))  # [N, H]
    revived = 0
    for level, codebook in enumerate(codebooks):
        nearest, chosen = _squared_errors(residual, codebook)
        dead = torch.ones(len(codebook), dtype=torch.bool, device=device)
        dead[chosen] = False
        places = dead.nonzero()[:, 0][: int(nearest.count_nonzero())]
        if len(places):
            drawn = torch.multinomial(nearest.cpu(), len(places), generator=generator)
            codebooks[level, places] = residual[drawn.to(device)]
            for memory in optimizer.state[codebooks].values():
                if memory.shape == codebooks.shape:  # the moments, not the step count
                    memory[level, places] = 0
            revived += len(places)
            _, chosen = _squared_errors(residual, codebook)
        residual = residual - codebook[chosen]
    return revived


def _squared_errors(residual: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each item is away from its nearest code, float [N] and at least 0, and that code, int64 [N]."""
    errors, chosen = squared_distances(residual, codebook).min(dim=1)
    return errors.clamp(min=0), chosen
