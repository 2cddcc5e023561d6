"""Thumbnails are small JPEGs within a budget; files that cannot be shown get none."""

import base64
import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from macrec_pipeline.evaluation.report import thumbnails as module
from macrec_pipeline.evaluation.report.thumbnails import Thumbnail, thumbnails


def _image(path: Path, *, size: tuple[int, int] = (300, 600), mode: str = "RGB") -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA" if mode == "RGBA" else None).convert(mode).save(path)
    return path


def _decoded(thumbnail: Thumbnail) -> Image.Image:
    header, content = thumbnail.uri.split(",")
    assert header == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_images_become_small_jpegs_of_the_same_shape(tmp_path: Path) -> None:
    """The proportions are preserved, the size is that of a thumbnail, and the bytes are reproducible."""
    path = _image(tmp_path / "a.png")
    found = thumbnails({path: 1})
    decoded = _decoded(found[path])
    assert decoded.format == "JPEG"
    assert decoded.size == (found[path].width, found[path].height) == (88, 176)
    assert thumbnails({path: 1}) == found


def test_transparent_images_get_a_white_background(tmp_path: Path) -> None:
    """A fully transparent image is white, not black."""
    path = tmp_path / "clear.png"
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(path)
    assert _decoded(thumbnails({path: 1})[path]).convert("RGB").getpixel((10, 10)) == (255, 255, 255)


def test_camera_rotation_is_applied(tmp_path: Path) -> None:
    """An image whose metadata says that it is rotated is shown upright."""
    path = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    found = thumbnails({path: 1})[path]
    assert (found.width, found.height) == (20, 40)


def test_the_budget_shrinks_all_images(tmp_path: Path) -> None:
    """Every use of an image counts: all images get smaller until their uses stay below the limit."""
    paths = {_image(tmp_path / f"{number}.png"): 10 for number in range(3)}
    large = thumbnails(paths)
    budget = sum(len(large[path].uri) * uses for path, uses in paths.items()) // 2
    small = thumbnails(paths, max_total=budget)
    assert set(small) == set(large)
    assert all(small[path].width < large[path].width for path in paths)
    assert sum(len(small[path].uri) * uses for path, uses in paths.items()) <= budget


def test_a_budget_that_cannot_be_met_drops_images(tmp_path: Path) -> None:
    """If even the smallest size exceeds the budget, the first images in path order stay and the limit holds."""
    paths = {_image(tmp_path / f"{number}.png"): 1 for number in range(4)}
    found = thumbnails(paths, max_total=1_300)
    assert list(found) == sorted(paths)[: len(found)]
    assert 0 < len(found) < 4
    assert sum(len(thumbnail.uri) for thumbnail in found.values()) <= 1_300


def test_files_that_cannot_be_shown_are_omitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a text file, a truncated image and an image with too many pixels get no thumbnail."""
    whole = _image(tmp_path / "whole.jpg")
    text, short, large = tmp_path / "text.jpg", tmp_path / "short.jpg", _image(tmp_path / "z.png", size=(700, 700))
    text.write_text("not an image")
    short.write_bytes(whole.read_bytes()[:3000])
    monkeypatch.setattr(module, "MAX_PIXELS", 400_000)
    assert list(thumbnails(dict.fromkeys((tmp_path / "none.jpg", text, short, large, whole), 1))) == [whole]


def test_no_image_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript with the name of an image is omitted, because Pillow would pass it to Ghostscript."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    disguised = tmp_path / "image.jpg"
    Image.new("RGB", (30, 30)).save(disguised, format="EPS")
    with suppress(Exception), Image.open(disguised) as image:
        image.load()
    assert started
    started.clear()
    assert thumbnails({disguised: 1}) == {}
    assert not started


@pytest.mark.parametrize("ending", ["webp", "tif", "ppm", "gif"])
def test_formats_that_pillow_loads_late_are_shown(tmp_path: Path, ending: str) -> None:
    """Formats whose plugins Pillow loads on demand are shown even if no such image was opened before."""
    path = tmp_path / f"image.{ending}"
    Image.new("RGB", (30, 30)).save(path)
    assert list(thumbnails({path: 1})) == [path]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "1"])
def test_every_colour_mode_can_be_shown(tmp_path: Path, mode: str) -> None:
    """Grey, palette, alpha and 16-bit images all become thumbnails."""
    path = tmp_path / "image.png"
    Image.new(mode, (30, 30)).save(path)
    assert list(thumbnails({path: 1})) == [path]
