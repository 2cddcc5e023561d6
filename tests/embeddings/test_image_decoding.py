"""Decoding image files: what each format becomes, which files are rejected, and decoding ahead of the model."""

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from macrec_pipeline.embeddings import image_decoding
from macrec_pipeline.embeddings.image_decoding import decode_ahead, decode_image, pillow_warnings_ignored

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def decode(path: Path, max_pixels: int = 1_000_000) -> Image.Image:
    image = decode_image(path, max_pixels=max_pixels)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return image


def rejection(path: Path, max_pixels: int = 1_000_000) -> str:
    reason = decode_image(path, max_pixels=max_pixels)
    assert isinstance(reason, str)
    assert "\n" not in reason
    return reason


def is_close(colour: object, expected: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.abs(np.subtract(colour, expected)).max() <= tolerance)  # type: ignore[call-overload]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """An image stored on its side with EXIF orientation 6 is turned upright: its left side becomes the top."""
    stored = Image.new("RGB", (40, 20), BLUE)
    stored.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "p.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "p.jpg")
    assert image.size == (20, 40)
    assert is_close(image.getpixel((10, 5)), RED)
    assert is_close(image.getpixel((10, 35)), BLUE)


def test_damaged_exif_data_are_ignored(tmp_path: Path) -> None:
    """The pixels are usable even if the metadata cannot be parsed."""
    Image.new("RGB", (8, 8), RED).save(tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    with pillow_warnings_ignored():
        assert is_close(decode(tmp_path / "p.jpg").getpixel((4, 4)), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    """A transparent pixel becomes white, the usual background of a shop, in every mode with transparency."""
    path = tmp_path / "p.png"
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.save(path, transparency=1)
    else:
        Image.new(mode, (4, 4), 0).save(path)
    assert decode(path).getpixel((2, 2)) == WHITE


def test_half_transparent_red_on_white_is_pink(tmp_path: Path) -> None:
    """Partial transparency is blended: 128/255 of red over white."""
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png").getpixel((0, 0)) == (255, 127, 127)


def test_palette_and_gray_become_rgb(tmp_path: Path) -> None:
    """The colours of a palette and the values of a gray or black-and-white image are preserved."""
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "gray.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bilevel.png")
    assert decode(tmp_path / "palette.png").getpixel((0, 0)) == RED
    assert decode(tmp_path / "gray.png").getpixel((0, 0)) == (77, 77, 77)
    assert decode(tmp_path / "bilevel.png").getpixel((0, 0)) == WHITE


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    """Red in a file for print (no cyan, full magenta and yellow) stays red and is not inverted."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "p.jpg", quality=95)
    assert is_close(decode(tmp_path / "p.jpg").getpixel((8, 8)), RED)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """The 16-bit values 0, 32896 and 65535 become the 8-bit values 0, 128 and 255."""
    values = np.array([[0, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    assert np.asarray(decode(tmp_path / "p.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_float_and_int_images_are_scaled_to_their_own_range(tmp_path: Path) -> None:
    """In modes that define no white, the smallest value becomes black and the largest white; NaN is rejected."""
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.array([[0, 500_000, 1_000_000]], dtype=np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    assert np.asarray(decode(tmp_path / "float.tif"))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(decode(tmp_path / "int.tif"))[0, :, 0].tolist() == [0, 128, 255]
    assert "not finite" in rejection(tmp_path / "nan.tif")


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_becomes_its_first_frame(tmp_path: Path, ending: str) -> None:
    """The later frames of GIF, WebP and PNG files are ignored."""
    path = tmp_path / f"p.{ending}"
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(path) as animation:
        assert getattr(animation, "n_frames", 1) == 2
    assert is_close(decode(path).getpixel((4, 4)), RED)


def test_files_that_are_no_images_are_rejected_with_the_reason(tmp_path: Path) -> None:
    """The reason tells a missing file, an empty file, a folder, an error page, a PostScript file and a pipe apart."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "code.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert rejection(tmp_path / "none.jpg") == "the file is missing"
    assert rejection(tmp_path / "empty.jpg") == "the file is empty (0 bytes)"
    assert rejection(tmp_path) == "the path is not a regular file"
    assert rejection(tmp_path / "pipe.jpg") == "the path is not a regular file"
    assert "not an image in a known format" in rejection(tmp_path / "page.jpg")
    assert "not an image in a known format" in rejection(tmp_path / "code.eps")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif"])
def test_truncated_files_are_rejected(tmp_path: Path, ending: str) -> None:
    """An incomplete download is rejected, and not used as half an image."""
    path = tmp_path / f"p.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be decoded" in rejection(path)


def test_max_pixels_is_checked_before_decoding(tmp_path: Path) -> None:
    """A header that announces too many pixels is enough for a rejection, also beyond the limits of Pillow itself."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def header_only(width: int, height: int) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")

    path = tmp_path / "p.png"
    path.write_bytes(header_only(2000, 1000))
    assert rejection(path, max_pixels=1_999_999) == (
        "the image has 2000 x 1000 pixels, more than image_encoder.max_pixels = 1999999"
    )
    assert "cannot be decoded" in rejection(path, max_pixels=2_000_000)
    path.write_bytes(header_only(10_000, 10_000))  # Pillow only warns about this size
    with pillow_warnings_ignored():
        assert "more than image_encoder.max_pixels" in rejection(path)
    path.write_bytes(header_only(100_000, 100_000))  # and raises an error for this one
    assert "exceeds limit" in rejection(path)


def test_very_long_images_are_rejected(tmp_path: Path) -> None:
    """1 x 51 pixels are rejected, since resizing the short side would create a huge image; 1 x 50 are accepted."""
    Image.new("RGB", (1, 51)).save(tmp_path / "too_long.png")
    Image.new("RGB", (1, 50)).save(tmp_path / "long.png")
    assert "over 50 times" in rejection(tmp_path / "too_long.png")
    assert decode(tmp_path / "long.png").size == (1, 50)


def _sample_files() -> list[bytes]:
    image = Image.new("RGB", (24, 16), WHITE)
    ImageDraw.Draw(image).ellipse((2, 2, 20, 14), fill=RED)
    samples = []
    for kind, mode in [
        ("JPEG", "RGB"),
        ("PNG", "RGBA"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "CMYK"),
        ("BMP", "RGB"),
    ]:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind)
        samples.append(buffer.getvalue())
    return samples


@settings(max_examples=150, deadline=None)
@given(
    sample=st.sampled_from(_sample_files()),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.1, 1),
)
def test_damaged_bytes_never_raise(
    tmp_path_factory: pytest.TempPathFactory, sample: bytes, edits: list[tuple[float, int]], keep: float
) -> None:
    """Whatever bytes are changed or cut off, the result is an RGB image or a one-line reason."""
    data = bytearray(sample)
    for position, value in edits:
        data[int(position * (len(data) - 1))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[: int(len(data) * keep)])
    with pillow_warnings_ignored():
        result = decode_image(path, max_pixels=1_000_000)
    if isinstance(result, str):
        assert result
        assert "\n" not in result
    else:
        assert result.mode == "RGB"


def test_decode_ahead_keeps_the_order_and_decodes_each_path_once(
    images_of_widths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results come in the order of the paths, even if later images are ready first, and no file is read twice."""
    decoded_paths: list[Path] = []

    def decode_first_slowly(path: Path, *, max_pixels: int) -> Image.Image | str:
        decoded_paths.append(path)
        time.sleep(0.03 if path == images_of_widths[0] else 0)
        return decode_image(path, max_pixels=max_pixels)

    monkeypatch.setattr(image_decoding, "decode_image", decode_first_slowly)
    results = list(
        decode_ahead(
            images_of_widths, max_pixels=10_000, transform=lambda image: torch.tensor(image.size[0]), num_ahead=4
        )
    )
    assert [int(result) for result in results if isinstance(result, torch.Tensor)] == list(range(1, 21))
    assert sorted(decoded_paths) == sorted(images_of_widths)


def test_decode_ahead_is_bounded_and_can_be_stopped(images_of_widths: list[Path]) -> None:
    """At most num_ahead + 1 images are decoded before the first is taken, and none after the stream is closed."""
    started: list[int] = []
    lock = threading.Lock()

    def transform(image: Image.Image) -> torch.Tensor:
        with lock:
            started.append(image.size[0])
        return torch.zeros(1)

    stream = decode_ahead(images_of_widths, max_pixels=10_000, transform=transform, num_ahead=3)
    next(stream)
    time.sleep(0.1)
    assert len(started) == 4
    stream.close()
    assert len(started) == 4


@pytest.fixture
def images_of_widths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{width:02}.png" for width in range(1, 21)]
    for width, path in enumerate(paths, start=1):
        Image.new("RGB", (width, 10)).save(path)
    return paths


def test_a_single_pixel_is_an_image(tmp_path: Path) -> None:
    """A tracking pixel or placeholder of 1 x 1 is decoded like any other image."""
    Image.new("RGB", (1, 1), RED).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png").getpixel((0, 0)) == RED


def test_sixteen_bits_per_channel_keep_their_colours(tmp_path: Path) -> None:
    """A PNG with 48 bits per pixel is scaled to 24 bits: full red and half red."""
    rows = b"".join(b"\0" + struct.pack(">6H", 65535, 0, 0, 32896, 0, 0) for _ in range(2))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + packed)
    image = decode(tmp_path / "p.png")
    assert is_close(image.getpixel((0, 0)), RED, tolerance=1)
    assert is_close(image.getpixel((1, 1)), (128, 0, 0), tolerance=1)


def test_cmyk_tiff_and_webp_with_transparency(tmp_path: Path) -> None:
    """A TIFF for print keeps its colours, and transparency in WebP becomes white."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "p.tif")
    Image.new("RGBA", (8, 8), (0, 0, 255, 0)).save(tmp_path / "p.webp", lossless=True)
    assert is_close(decode(tmp_path / "p.tif").getpixel((4, 4)), RED)
    assert decode(tmp_path / "p.webp").getpixel((4, 4)) == WHITE
