"""The images of the demo shop, which show an item's style (palette, pattern and emblem) but not what the item is.

`draw_image` takes a style and a random generator and returns an image. Images of one style differ in scale, angle,
shift, brightness and the place of the emblem, as photographs of one design do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

IMAGE_SIZE = 96
"""The width and height of an image in pixels."""
# Images are drawn this many times larger and scaled down, which smooths the edges.
_OVERSAMPLING = 2

Grid = NDArray[np.float64]
Colour = tuple[int, int, int]


def _band(values: Grid, share: float = 0.5) -> Grid:
    """Return 1 in the first `share` of each unit period, else 0."""
    return (values % 1.0 < share).astype(np.float64)


def _cell_radius(x: Grid, y: Grid) -> Grid:
    """Return each point's distance from the centre of its unit cell."""
    return np.hypot(x % 1.0 - 0.5, y % 1.0 - 0.5)


def _stripes(x: Grid, y: Grid) -> Grid:
    return _band(y)


def _pinstripes(x: Grid, y: Grid) -> Grid:
    return _band(2.0 * x, 0.18)


def _diagonals(x: Grid, y: Grid) -> Grid:
    return _band((x + y) / np.sqrt(2.0))


def _dots(x: Grid, y: Grid) -> Grid:
    return (_cell_radius(x, y) < 0.3).astype(np.float64)


def _checks(x: Grid, y: Grid) -> Grid:
    return (np.floor(x) + np.floor(y)) % 2.0


def _gradient(x: Grid, y: Grid) -> Grid:
    return np.clip(0.5 + (y + 0.3 * x) / 6.0, 0.0, 1.0)


def _rings(x: Grid, y: Grid) -> Grid:
    return _band(np.hypot(x, y))


def _zigzag(x: Grid, y: Grid) -> Grid:
    return _band(y + np.abs(x % 1.0 - 0.5) * 1.4)


def _triangles(x: Grid, y: Grid) -> Grid:
    return (np.abs(x % 1.0 - 0.5) * 2.0 < y % 1.0).astype(np.float64)


def _tartan(x: Grid, y: Grid) -> Grid:
    return 0.5 * _band(x, 0.4) + 0.5 * _band(y, 0.4)


def _waves(x: Grid, y: Grid) -> Grid:
    return _band(y + 0.35 * np.sin(2.0 * np.pi * x / 1.5), 0.45)


def _petals(x: Grid, y: Grid) -> Grid:
    angle = np.arctan2(y % 1.0 - 0.5, x % 1.0 - 0.5)
    return (_cell_radius(x, y) < 0.22 + 0.2 * np.cos(5.0 * angle)).astype(np.float64)


def _bricks(x: Grid, y: Grid) -> Grid:
    row = np.floor(2.0 * y)
    return np.maximum(_band(x + 0.5 * (row % 2.0), 0.12), _band(2.0 * y, 0.2))


def _rays(x: Grid, y: Grid) -> Grid:
    return _band(np.arctan2(y, x) * 9.0 / np.pi)


@dataclass(frozen=True)
class Style:
    """How an item looks.

    Attributes:
        name: the name of the style.
        pattern: maps x and y coordinates to the share of the light colour at each point.
        dark: the first colour of the pattern, as RGB.
        light: the second colour of the pattern, as RGB.
        accent: the colour of the emblem, as RGB.
        corners: the number of corners of the emblem; 0 stands for a disc.
    """

    name: str
    pattern: Callable[[Grid, Grid], Grid]
    dark: Colour
    light: Colour
    accent: Colour
    corners: int


STYLES: tuple[Style, ...] = (
    Style("stripes", _stripes, (22, 44, 98), (240, 236, 220), (200, 60, 50), 4),
    Style("dots", _dots, (214, 70, 130), (255, 240, 246), (120, 20, 70), 0),
    Style("checks", _checks, (20, 20, 20), (245, 245, 245), (230, 190, 40), 4),
    Style("gradient", _gradient, (90, 30, 140), (255, 150, 60), (255, 235, 200), 0),
    Style("rings", _rings, (0, 110, 110), (230, 250, 240), (240, 120, 90), 3),
    Style("zigzag", _zigzag, (30, 90, 40), (170, 220, 90), (250, 250, 210), 6),
    Style("triangles", _triangles, (120, 70, 20), (240, 200, 80), (60, 30, 10), 3),
    Style("tartan", _tartan, (110, 15, 25), (30, 80, 50), (240, 230, 200), 5),
    Style("waves", _waves, (30, 110, 200), (200, 230, 255), (255, 255, 255), 0),
    Style("petals", _petals, (250, 160, 190), (60, 120, 70), (255, 220, 120), 5),
    Style("bricks", _bricks, (215, 205, 195), (175, 85, 60), (90, 90, 95), 4),
    Style("rays", _rays, (250, 210, 60), (15, 20, 70), (250, 90, 60), 6),
    Style("diagonals", _diagonals, (25, 25, 28), (250, 205, 20), (250, 250, 250), 3),
    Style("pinstripes", _pinstripes, (235, 235, 240), (110, 115, 125), (70, 160, 160), 0),
)


def draw_image(style: int, generator: np.random.Generator) -> Image.Image:
    """Draw an RGB image of a style, `IMAGE_SIZE` pixels wide and high.

    Args:
        style: an index in `STYLES`.
        generator: draws what differs between two items of the style.
    """
    look = STYLES[style]
    size = IMAGE_SIZE * _OVERSAMPLING
    x, y = _pattern_coordinates(size, generator)
    light_share = look.pattern(x, y)[..., None]  # [size, size, 1]
    colours = np.array(look.light) * light_share + np.array(look.dark) * (1.0 - light_share)  # [size, size, 3]
    brightness = generator.uniform(0.88, 1.12)
    pixels = np.clip(colours * brightness, 0.0, 255.0).astype(np.uint8)
    image = Image.fromarray(pixels, mode="RGB")
    _draw_emblem(image, look, generator)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def _pattern_coordinates(size: int, generator: np.random.Generator) -> tuple[Grid, Grid]:
    """Return x and y of each pixel in units of the pattern: scaled, rotated by up to 8 degrees, and shifted."""
    periods = generator.uniform(4.5, 6.5)
    angle = np.deg2rad(generator.uniform(-8.0, 8.0))
    shift_x, shift_y = generator.uniform(-0.8, 0.8, size=2)
    row, column = np.mgrid[0:size, 0:size] / size - 0.5
    x = periods * (np.cos(angle) * column - np.sin(angle) * row) + shift_x
    y = periods * (np.sin(angle) * column + np.cos(angle) * row) + shift_y
    return x, y


def _draw_emblem(image: Image.Image, look: Style, generator: np.random.Generator) -> None:
    size = image.width
    radius = size * generator.uniform(0.12, 0.2)
    centre_x, centre_y = generator.uniform(0.28, 0.72, size=2) * size
    rotation = generator.uniform(0.0, 360.0)
    pen = ImageDraw.Draw(image)
    if look.corners:
        pen.regular_polygon((centre_x, centre_y, radius), look.corners, rotation=rotation, fill=look.accent)
    else:
        box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
        pen.ellipse(box, fill=look.accent)
