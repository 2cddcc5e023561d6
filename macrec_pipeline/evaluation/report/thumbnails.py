"""Picture files -> small JPEG data URIs, so that the report is one page that needs nothing else.

A file that is missing, unreadable or absurdly large gives no thumbnail; the page draws a placeholder tile for it.
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
# What an encoder reads; without those for which Pillow would start another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Longest side in pixels and JPEG quality; the first pair with which all thumbnails stay below the limit is used.
_LADDER = ((176, 78), (144, 72), (112, 66), (84, 60), (60, 50), (40, 40))


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: `uri` is `data:image/jpeg;base64,...`, width and height are in pixels."""

    uri: str
    width: int
    height: int


def thumbnails(uses: Mapping[Path, int], *, max_total: int = MAX_TOTAL_CHARACTERS) -> dict[Path, Thumbnail]:
    """Encode each readable picture.

    Args:
        uses: file -> how many times the page shows it; each use costs its length again.
        max_total: characters that all uses may take together.

    Returns:
        file -> its thumbnail; without those that cannot be read. Should even the smallest size be too
        much, the last files in path order are left out.
    """
    pictures = {path: picture for path in sorted(uses) if (picture := _open(path)) is not None}
    encoded: dict[Path, Thumbnail] = {}
    for side, quality in _LADDER:
        encoded = {path: _encode(picture, side=side, quality=quality) for path, picture in pictures.items()}
        if sum(len(small.uri) * uses[path] for path, small in encoded.items()) <= max_total:
            return encoded
    kept: dict[Path, Thumbnail] = {}
    total = 0
    for path, small in encoded.items():
        total += len(small.uri) * uses[path]
        if total > max_total:
            break
        kept[path] = small
    return kept


def _formats() -> list[str]:
    """Those of `_FORMATS` that this build of Pillow knows; it fails on a format that it does not."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _open(path: Path) -> Image.Image | None:
    """The picture as RGB at the largest thumbnail size, upright, on white; None if it cannot be read."""
    largest = _LADDER[0][0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is no reason to show nothing
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return None
                picture.draft("RGB", (2 * largest, 2 * largest))
                upright = ImageOps.exif_transpose(picture)
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


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGBA", "LA", "PA", "P"):
        return picture.convert("RGB")
    transparent = picture.convert("RGBA")
    ground = Image.new("RGBA", transparent.size, "white")
    return Image.alpha_composite(ground, transparent).convert("RGB")


def _encode(picture: Image.Image, *, side: int, quality: int) -> Thumbnail:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{content}", small.width, small.height)
