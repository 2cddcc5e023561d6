"""Decodes image files. Takes paths and returns, for each, an upright 8-bit RGB image or the reason why it failed.

Real catalogues contain truncated downloads, error pages named `.jpg`, scans in CMYK and logos with transparency. None
of them may end a run, and none may be dropped silently: the reason for each failure is reported.
"""

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from macrec_pipeline.runtime.text_sanitizing import one_line_error

# Raster formats only. For EPS, Pillow would run Ghostscript, an interpreter of untrusted files.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Resizing the short side of a very long image to the encoder's input size can take gigabytes, however few its pixels.
MAX_ASPECT_RATIO = 50


def decode_image(path: Path, *, max_pixels: int) -> Image.Image | str:
    """Decode one image: its first frame, rotated as its EXIF data say, on a white background, as 8-bit RGB.

    Args:
        path: an image file.
        max_pixels: an image whose header announces more pixels is rejected before it is decoded.

    Returns:
        The image in mode RGB, or the reason why it cannot be used, as a phrase without a full stop.
    """
    try:
        if not path.is_file():
            return "the path is not a regular file" if path.exists() else "the file is missing"
        if path.stat().st_size == 0:
            return "the file is empty (0 bytes)"
        with Image.open(path, formats=_available_formats()) as image:
            size_problem = _size_problem(image.size, max_pixels=max_pixels)
            if size_problem:
                return size_problem
            image.load()
            _apply_exif_orientation(image)
            return _as_rgb(image)
    except UnidentifiedImageError:
        return f"not an image in a known format ({', '.join(FORMATS)})"
    except Exception as error:  # decoders raise all kinds of errors on damaged bytes, and one file must not end the run
        return f"the image cannot be decoded: {one_line_error(error)}"


def file_digests(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256, in hexadecimal, of each file's bytes, or "unreadable: PATH" for an unreadable file."""

    def digest(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return f"unreadable: {path}"

    # threads help, since hashing releases the interpreter's lock
    with ThreadPoolExecutor(_num_workers(), thread_name_prefix="images") as pool:
        return list(pool.map(digest, paths))


def decode_ahead(
    paths: Sequence[Path],
    *,
    max_pixels: int,
    transform: Callable[[Image.Image], torch.Tensor],
    num_ahead: int,
) -> Generator[torch.Tensor | str, None, None]:
    """Decode and transform images in one thread per core, ahead of the model that encodes them.

    Pillow releases the interpreter's lock while it decodes and resizes, so threads use every core and overlap with the
    model, without the copies between processes that worker processes would need. Each path is decoded once.

    Args:
        paths: image files.
        max_pixels: see `decode_image`.
        transform: RGB image -> float32 [3, height, width]; called from several threads at once.
        num_ahead: the largest number of results that wait in memory.

    Yields:
        In the order of `paths`, the result of `transform`, or the reason why the image cannot be used.
    """

    def prepare(path: Path) -> torch.Tensor | str:
        image = decode_image(path, max_pixels=max_pixels)
        return image if isinstance(image, str) else transform(image)

    waiting: deque[Future[torch.Tensor | str]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(_num_workers(), thread_name_prefix="images") as pool:
        try:
            for path in remaining:
                waiting.append(pool.submit(prepare, path))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller may stop early; decoding that has not begun is then not needed
            for future in waiting:
                future.cancel()


def _num_workers() -> int:
    """Return the number of cores that this process may use, at least 2, so that reading overlaps with decoding."""
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Silence Pillow's warnings inside the context. Enter it in one thread, around the threads that decode.

    The warnings concern odd metadata, which do not prevent decoding, and large images, which `decode_image` rejects by
    its own limit.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _available_formats() -> tuple[str, ...]:
    """Return the `FORMATS` that this build of Pillow supports; `Image.open` fails on an unknown format."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _size_problem(size: tuple[int, int], *, max_pixels: int) -> str | None:
    width, height = size
    if min(size) < 1:
        return f"the image has no pixels ({width} x {height})"
    if width * height > max_pixels:
        return f"the image has {width} x {height} pixels, more than image_encoder.max_pixels = {max_pixels}"
    if max(size) > MAX_ASPECT_RATIO * min(size):
        return f"the image has {width} x {height} pixels: its long side is over {MAX_ASPECT_RATIO} times its short side"
    return None


def _apply_exif_orientation(image: Image.Image) -> None:
    # damaged metadata must not cost the image: its pixels have already been decoded
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image).astype(np.float64) / 257)  # 65535 is white
    if image.mode in {"I", "F"}:  # these modes define no value as white, so the range of the image itself is used
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("some pixel values are not finite")
        span = float(np.ptp(values)) or 1.0
        return _gray((values - values.min()) * (255 / span))
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


def _gray(values: NDArray[np.float64]) -> Image.Image:
    """Return an image in mode RGB of gray values in [0, 255], float64 [height, width]."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
