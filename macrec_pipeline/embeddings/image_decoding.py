"""Picture files as shops have them: paths go in, upright 8-bit RGB pictures or a reason for each broken one leave.

A catalogue holds truncated downloads, error pages named `.jpg`, scans in CMYK and logos with transparency. None of them
may end a weekly run, and none may pass in silence: a picture that cannot be used becomes a sentence.
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

# Raster formats only. Pillow would also run Ghostscript on EPS, which no catalogue picture is worth.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Resizing the short side to an encoder's input blows a sliver up to gigabytes, whatever its number of pixels.
MAX_ASPECT_RATIO = 50


def decode_image(path: Path, *, max_pixels: int) -> Image.Image | str:
    """Decode one picture: first frame, turned as its EXIF says, transparency on white, 8 bits, RGB.

    Args:
        path: a picture file.
        max_pixels: a picture with more is refused from its header, before it is decoded.

    Returns:
        The picture in mode RGB, or the reason why there is none, as a sentence without a full stop.
    """
    try:
        if not path.is_file():
            return "the path is not a regular file" if path.exists() else "the file is missing"
        if path.stat().st_size == 0:
            return "the file is empty (0 bytes)"
        with Image.open(path, formats=_available_formats()) as picture:
            refusal = _size_refusal(picture.size, max_pixels=max_pixels)
            if refusal:
                return refusal
            picture.load()
            _turn_upright(picture)
            return _as_rgb(picture)
    except UnidentifiedImageError:
        return f"not a picture in a known format ({', '.join(FORMATS)})"
    except Exception as error:  # decoders raise nearly anything on damaged bytes, and one file must not end the run
        return f"the picture cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"


def files_digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256, in hexadecimal, of each file's bytes; of one that cannot be read, a text of its own that is none."""

    def digest(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return f"unreadable: {path}"

    with ThreadPoolExecutor(_num_workers(), thread_name_prefix="pictures") as pool:  # hashing frees the interpreter
        return list(pool.map(digest, paths))


def decode_ahead(
    paths: Sequence[Path],
    *,
    max_pixels: int,
    transform: Callable[[Image.Image], torch.Tensor],
    num_ahead: int,
) -> Generator[torch.Tensor | str, None, None]:
    """Read and transform pictures in a thread a core, ahead of the model that takes them.

    Pillow decodes and resizes without holding the interpreter's lock, so threads use every core as processes would,
    without a copy of each picture between them, and overlap with the model. Each path is
    decoded once, and no more than `num_ahead` results wait in memory.

    Args:
        paths: picture files.
        max_pixels: see `decode_image`.
        transform: RGB picture -> float32 [3, height, width]; called from several threads at once.
        num_ahead: pictures decoded before they are asked for.

    Yields:
        In the order of `paths`, what `transform` returned, or the reason why there is no picture.
    """

    def prepare(path: Path) -> torch.Tensor | str:
        picture = decode_image(path, max_pixels=max_pixels)
        return picture if isinstance(picture, str) else transform(picture)

    waiting: deque[Future[torch.Tensor | str]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(_num_workers(), thread_name_prefix="pictures") as pool:
        try:
            for path in remaining:
                waiting.append(pool.submit(prepare, path))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller may stop early; what has not begun need not
            for future in waiting:
                future.cancel()


def _num_workers() -> int:
    """One for each core that this process may use, and two at least, so that reading overlaps with decoding."""
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Silence Pillow's warnings while this is open; enter it in one thread, around the threads that decode.

    They concern pictures that are read all the same (odd metadata), or their size, which `decode_image` judges itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _available_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow knows; it fails on a format that it does not."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _size_refusal(size: tuple[int, int], *, max_pixels: int) -> str | None:
    width, height = size
    if min(size) < 1:
        return f"the picture has no pixels ({width} x {height})"
    if width * height > max_pixels:
        return f"the picture has {width} x {height} pixels, more than image_encoder.max_pixels = {max_pixels}"
    if max(size) > MAX_ASPECT_RATIO * min(size):
        return f"the picture has {width} x {height} pixels: longer than {MAX_ASPECT_RATIO} times its width"
    return None


def _turn_upright(picture: Image.Image) -> None:
    # damaged metadata say nothing about the direction; the pixels have been decoded already
    with suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if picture.mode.startswith("I;16"):
        return _gray(np.asarray(picture).astype(np.float64) / 257)  # 65535 is white
    if picture.mode in {"I", "F"}:  # no value of these is defined as white: the picture's own extremes are used
        values = np.asarray(picture).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("pixel values that are not finite")
        span = float(np.ptp(values)) or 1.0
        return _gray((values - values.min()) * (255 / span))
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy


def _gray(values: NDArray[np.float64]) -> Image.Image:
    """Gray values in [0, 255], float64 [height, width], as a picture in mode RGB."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
