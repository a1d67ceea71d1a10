"""Ink and paper of the procedural scenes: colours, shapes, patterns, gradients and letters as antialiased masks.

Everything is drawn at `FINE` × `FINE` points (a mask is 0 for paper, 255 for ink) and reduced to `SIZE` × `SIZE` by
area averaging. Coordinates are fractions of the picture's side, the origin at the top left.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 64
FINE = 4 * SIZE

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 50),
    "green": (30, 150, 60),
    "blue": (30, 70, 215),
    "purple": (130, 40, 160),
    "black": (15, 15, 15),
    "white": (248, 248, 248),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
PATTERNS = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checks", "dots", "grid")
GRADIENTS = ("left to right", "top to bottom", "centre to edge")

RGB = tuple[int, int, int]


def contrast(first: str, second: str) -> bool:
    """Whether two named colours are far enough apart (a third of the RGB cube's diagonal) to show one on the other."""
    return math.dist(COLOURS[first], COLOURS[second]) >= 147


def paint(ground: RGB, *layers: tuple[Image.Image, RGB]) -> Image.Image:
    """A picture of `SIZE` × `SIZE`: the ground colour with each mask inked over it in turn."""
    picture = Image.new("RGB", (FINE, FINE), ground)
    for mask, ink in layers:
        picture.paste(ink, mask=mask)
    return picture.reduce(FINE // SIZE)


def blend(first: RGB, second: RGB, gradient: str) -> Image.Image:
    """A smooth passage from the first colour to the second along one of `GRADIENTS`."""
    axis = (np.arange(SIZE) + 0.5) / SIZE
    x, y = np.meshgrid(axis, axis)
    radius = np.minimum(np.hypot(x - 0.5, y - 0.5) / 0.6, 1.0)
    share = {"left to right": x, "top to bottom": y, "centre to edge": radius}[gradient][..., None]
    pixels = np.asarray(first) * (1 - share) + np.asarray(second) * share
    return Image.fromarray(pixels.round().astype(np.uint8))


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    radii = [1.0 if k % 2 == 0 else inner for k in range(2 * points)]
    return [(r * math.sin(math.pi * k / points), -r * math.cos(math.pi * k / points)) for k, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    """The classic heart curve, scaled into the unit circle."""
    turns = [2 * math.pi * k / 60 for k in range(60)]
    return [
        (
            16 * math.sin(t) ** 3 / 17,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    ]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(5, 0.42),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "cross": [(-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3), (0.3, 0.9), (-0.3, 0.9),
              (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)],
}  # fmt: skip


def shape_mask(shape: str, x: float, y: float, radius: float) -> Image.Image:
    """One of `SHAPES` around the centre (x, y)."""
    mask = Image.new("L", (FINE, FINE), 0)
    draw = ImageDraw.Draw(mask)
    if shape in _OUTLINES:
        draw.polygon([((x + radius * dx) * FINE, (y + radius * dy) * FINE) for dx, dy in _OUTLINES[shape]], fill=255)
    else:
        draw.circle((x * FINE, y * FINE), 0.95 * radius * FINE, fill=255)
        if shape == "ring":
            draw.circle((x * FINE, y * FINE), 0.5 * radius * FINE, fill=0)
    return mask


@cache
def pattern_mask(pattern: str) -> Image.Image:
    """One of `PATTERNS`, four periods across; stripes and checks begin with ink at the top left."""
    axis = (np.arange(FINE) + 0.5) / FINE
    x, y = np.meshgrid(axis, axis)
    across, down = np.floor(8 * x) % 2 == 0, np.floor(8 * y) % 2 == 0
    ink = {
        "horizontal stripes": down,
        "vertical stripes": across,
        "diagonal stripes": np.floor(4 * (x + y)) % 2 == 0,
        "checks": np.floor(4 * x) % 2 == np.floor(4 * y) % 2,
        "dots": np.hypot((4 * x) % 1 - 0.5, (4 * y) % 1 - 0.5) < 0.3,
        "grid": (np.abs((4 * x) % 1 - 0.5) > 0.36) | (np.abs((4 * y) % 1 - 0.5) > 0.36),
    }[pattern]
    return Image.fromarray(np.where(ink, 255, 0).astype(np.uint8))


@cache
def word_mask(word: str) -> Image.Image:
    """A word in bold capitals (DejaVu Sans Bold, which matplotlib carries), centred, 92% of the picture wide."""
    left, _, right, _ = _bold(100).getbbox(word)
    font = _bold(100 * 0.92 * FINE / (right - left))
    mask = Image.new("L", (FINE, FINE), 0)
    left, top, right, bottom = font.getbbox(word)
    ImageDraw.Draw(mask).text(((FINE - left - right) / 2, (FINE - top - bottom) / 2), word, fill=255, font=font)
    return mask


def _bold(size: float) -> ImageFont.FreeTypeFont:
    """In the layout that every Pillow has; the other, of libraqm, sets letters elsewhere."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
