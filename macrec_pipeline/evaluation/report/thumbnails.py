"""Encode image files as small JPEG data URIs, so that the report is a single file without external resources.

A file that is missing, unreadable or far too large gets no thumbnail; the page draws a placeholder tile for it.
"""

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_TOTAL_CHARACTERS = 2_000_000
MAX_PIXELS = 50_000_000
# The formats that the image encoders read, except those for which Pillow would start an external program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# (longest side in pixels, JPEG quality), largest first. The first pair that fits all thumbnails into the limit is used.
_SIZES = ((176, 78), (144, 72), (112, 66), (84, 60), (60, 50), (40, 40))


@dataclass(frozen=True)
class Thumbnail:
    """A small image: `uri` is `data:image/jpeg;base64,...`, width and height are in pixels."""

    uri: str
    width: int
    height: int


def thumbnails(uses: Mapping[Path, int], *, max_total: int = MAX_TOTAL_CHARACTERS) -> dict[Path, Thumbnail]:
    """Encode each readable image, all at the same size and quality.

    Args:
        uses: image file -> how many times the page shows it. Every use embeds the data URI again.
        max_total: number of characters that all uses together may take.

    Returns:
        Image file -> its thumbnail, without the files that cannot be read. If even the smallest size exceeds the
        limit, the last files in path order are left out.
    """
    images = {path: image for path in sorted(uses) if (image := _open(path)) is not None}
    encoded: dict[Path, Thumbnail] = {}
    for side, quality in _SIZES:
        encoded = {path: _encode(image, side=side, quality=quality) for path, image in images.items()}
        if sum(len(thumbnail.uri) * uses[path] for path, thumbnail in encoded.items()) <= max_total:
            return encoded
    within_limit: dict[Path, Thumbnail] = {}
    total = 0
    for path, thumbnail in encoded.items():
        total += len(thumbnail.uri) * uses[path]
        if total > max_total:
            break
        within_limit[path] = thumbnail
    return within_limit


def _supported_formats() -> list[str]:
    """Return the members of `_FORMATS` that this build of Pillow supports; `Image.open` rejects any other."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _open(path: Path) -> Image.Image | None:
    """Load an image as RGB at the largest thumbnail size, upright, on white; None if it cannot be read."""
    largest = _SIZES[0][0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image with damaged metadata can still be shown
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_supported_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                image.draft("RGB", (2 * largest, 2 * largest))
                upright = ImageOps.exif_transpose(image)
                upright.thumbnail((largest, largest), Image.Resampling.LANCZOS)
                return _on_white(upright)
    except (
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombWarning,
    ):
        return None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA", "P"):
        return image.convert("RGB")
    transparent = image.convert("RGBA")
    background = Image.new("RGBA", transparent.size, "white")
    return Image.alpha_composite(background, transparent).convert("RGB")


def _encode(image: Image.Image, *, side: int, quality: int) -> Thumbnail:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{content}", small.width, small.height)
