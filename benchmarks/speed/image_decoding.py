"""From image files to an encoder's inputs: decoded ahead by as many threads as there are cores, in order.

Both sides produce the float32 tensors of an encoder with 224 x 224 pixels. The pipeline also validates each file,
applies its orientation and puts transparent images on white. The baseline only opens, decodes and resizes one file
after the other.
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

# Size of a typical product image. Like photos, the generated images are smooth with some noise.
_WIDTH, _HEIGHT, _DISTINCT = 900, 700, 16
# Target: this share of the baseline's speed times the number of cores, since not everything runs in parallel.
_PARALLEL_SHARE = 0.9


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [_case(1000, target=_PARALLEL_SHARE * _cores(), by_ratio=True)]


def growing() -> list[Case]:
    """Return cases for the cost by number of images."""
    return [_case(images, repeats=2, baseline_repeats=2) for images in (125, 250, 500)]


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [_case(6, repeats=1, baseline_repeats=1)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write_images(folder: Path, number: int) -> None:
    """Write JPEG files of 900 x 700 pixels, about 90 kB each."""
    generator = np.random.default_rng(1)
    for index in range(number):
        if index < _DISTINCT:
            coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((_WIDTH, _HEIGHT))
            noise = generator.integers(-8, 9, (_HEIGHT, _WIDTH, 3))
            Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(_path(folder, index))
        else:
            _path(folder, index).write_bytes(_path(folder, index % _DISTINCT).read_bytes())


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.jpg"


def _pipeline(folder: Path) -> Timed:
    paths, transform = sorted(folder.glob("*.jpg")), create_transform(**PREPROCESSING, is_training=False)

    def run() -> list[float]:
        stream = decode_ahead(paths, max_pixels=50_000_000, transform=transform, num_ahead=64)
        return [_mean(image) for image in stream]

    return run


def _baseline(folder: Path) -> Timed:
    paths, transform = sorted(folder.glob("*.jpg")), create_transform(**PREPROCESSING, is_training=False)

    def run() -> list[float]:
        means = []
        for path in paths:
            with Image.open(path) as image:
                means.append(_mean(transform(image.convert("RGB"))))
        return means

    return run


def _mean(image: torch.Tensor | str) -> float:
    assert isinstance(image, torch.Tensor), image
    return float(image.mean())


def _check_equal(pipeline: Any, baseline: Any) -> None:
    assert pipeline == baseline


def _case(number: int, **kwargs: Any) -> Case:
    return Case(
        name=f"picture decoding, {number:,} pictures of 900 x 700",
        size=number,
        size_of="pictures",
        prepare=lambda folder: _write_images(folder, number),
        pipeline=_pipeline,
        baseline=_baseline,
        check_equal=_check_equal,
        **kwargs,
    )
