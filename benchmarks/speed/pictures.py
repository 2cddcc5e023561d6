"""From picture files to an encoder's inputs: decoded ahead by as many threads as there are cores, in order.

Both sides end in the float32 tensors that an encoder of 224 x 224 pixels takes. Ours also checks each file, turns it
upright and lays transparency on white; the baseline opens, decodes and resizes one file after the other, and no more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from benchmarks.speed.case import Case, Timed
from macrec_pipeline.embeddings.efficientnet_lite0 import PREPROCESSING
from macrec_pipeline.embeddings.image_decoding import decode_ahead

# A shop's picture; what a camera sees is smooth with some noise, and so is this.
_WIDTH, _HEIGHT, _DISTINCT = 900, 700, 16
# Of the speed of the plain loop times the cores; the rest is what cannot run beside each other.
_SHARE_OF_THE_CORES = 0.9


def cases() -> list[Case]:
    """The table."""
    return [_case(1000, target=_SHARE_OF_THE_CORES * _cores(), by_ratio=True)]


def growing() -> list[Case]:
    """The cost by pictures."""
    return [_case(pictures, repeats=2, baseline_repeats=2) for pictures in (125, 250, 500)]


def tiny() -> list[Case]:
    """For the tests."""
    return [_case(6, repeats=1, baseline_repeats=1)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write_pictures(folder: Path, number: int) -> None:
    """JPEG files of 900 x 700 pixels, some 90 kB each."""
    draw = np.random.default_rng(1)
    for place in range(number):
        if place < _DISTINCT:
            coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((_WIDTH, _HEIGHT))
            noise = draw.integers(-8, 9, (_HEIGHT, _WIDTH, 3))
            Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(_path(folder, place))
        else:
            _path(folder, place).write_bytes(_path(folder, place % _DISTINCT).read_bytes())


def _path(folder: Path, place: int) -> Path:
    return folder / f"{place:05d}.jpg"


def _ours(folder: Path) -> Timed:
    paths, transform = sorted(folder.glob("*.jpg")), create_transform(**PREPROCESSING, is_training=False)

    def run() -> list[float]:
        stream = decode_ahead(paths, max_pixels=50_000_000, transform=transform, num_ahead=64)
        return [_mean(picture) for picture in stream]

    return run


def _plain(folder: Path) -> Timed:
    paths, transform = sorted(folder.glob("*.jpg")), create_transform(**PREPROCESSING, is_training=False)

    def run() -> list[float]:
        means = []
        for path in paths:
            with Image.open(path) as picture:
                means.append(_mean(transform(picture.convert("RGB"))))
        return means

    return run


def _mean(picture: torch.Tensor | str) -> float:
    assert isinstance(picture, torch.Tensor), picture
    return float(picture.mean())


def _same(ours: Any, theirs: Any) -> None:
    assert ours == theirs


def _case(number: int, **kwargs: Any) -> Case:
    return Case(
        name=f"picture decoding, {number:,} pictures of 900 x 700",
        size=number,
        size_of="pictures",
        prepare=lambda folder: _write_pictures(folder, number),
        ours=_ours,
        baseline=_plain,
        same=_same,
        **kwargs,
    )
