"""The five kinds of scenes in graded difficulty: what can be in them, how it is said, how it is drawn.

A scene is one *combination* of attributes. Its caption names every attribute; what is left open (a point of placement,
a shade of colour, the phrasing) comes from the random source that `caption` and `draw` are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from PIL import Image, ImageChops

from ._drawing import (
    COLOURS,
    GRADIENTS,
    PATTERNS,
    RGB,
    SHAPES,
    blend,
    contrast,
    paint,
    pattern_mask,
    shape_mask,
    word_mask,
)
from ._scene import Scene

WORDS = ("STOP", "OPEN", "EXIT", "TAXI", "CAFE", "LOVE", "FISH", "JAZZ", "KING", "ZERO")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _shade(colour: str, rng: Random) -> RGB:
    """A named colour, each channel up to 6 of 255 levels off."""
    red, green, blue = (min(255, max(0, level + rng.randint(-6, 6))) for level in COLOURS[colour])
    return red, green, blue


def _near(value: float, rng: Random, by: float = 0.012) -> float:
    return value + rng.uniform(-by, by)


_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Plain(Scene):
    """An even ground (both colours the same), or a gradient between two colours."""

    colour: str
    other: str
    gradient: str
    kind = "plain"
    vocabulary: ClassVar = {"colour": _NAMES, "other": _NAMES, "gradient": ("none", *GRADIENTS)}

    @classmethod
    def random(cls, rng: Random) -> Self:
        """Even in one case of three."""
        if rng.random() < 1 / 3:
            colour = rng.choice(_NAMES)
            return cls(colour, colour, "none")
        while (scene := super().random(rng)).gradient == "none":
            pass
        return scene

    def visible(self) -> bool:
        if self.gradient == "none":
            return self.colour == self.other
        return contrast(self.colour, self.other)

    def neighbours(self) -> Iterator[Self]:
        """An even ground, whose colours only change together, has the other even grounds as neighbours."""
        if self.gradient == "none":
            return (replace(self, colour=colour, other=colour) for colour in _NAMES if colour != self.colour)
        return super().neighbours()

    def caption(self, rng: Random) -> str:
        first, second = self.colour, self.other
        forms = {
            "none": (
                f"a plain {first} background",
                f"nothing but {first}",
                f"{_a(first)} ground without anything on it",
            ),
            "left to right": (
                f"{first} on the left fading to {second} on the right",
                f"a smooth gradient from {first} to {second}, left to right",
            ),
            "top to bottom": (
                f"{first} at the top fading to {second} at the bottom",
                f"a smooth gradient from {first} to {second}, top to bottom",
            ),
            "centre to edge": (
                f"{first} in the centre fading to {second} at the edges",
                f"a soft {first} glow on {second}",
            ),
        }[self.gradient]
        return rng.choice(forms)

    def draw(self, rng: Random) -> Image.Image:
        if self.gradient == "none":
            return paint(_shade(self.colour, rng))
        return blend(_shade(self.colour, rng), _shade(self.other, rng), self.gradient)


@dataclass(frozen=True)
class Shape(Scene):
    """One shape, small or large, in the middle."""

    size: str
    colour: str
    shape: str
    ground: str
    kind = "shape"
    vocabulary: ClassVar = {"size": ("small", "large"), "colour": _NAMES, "shape": SHAPES, "ground": _NAMES}

    def visible(self) -> bool:
        return contrast(self.colour, self.ground)

    def caption(self, rng: Random) -> str:
        what = f"a {self.size} {self.colour} {self.shape}"
        return rng.choice(
            (f"{what} on {_a(self.ground)} background", f"{what} on {self.ground}", f"{what} in front of {self.ground}")
        )

    def draw(self, rng: Random) -> Image.Image:
        radius = {"small": 0.2, "large": 0.42}[self.size] * rng.uniform(0.96, 1.04)
        mask = shape_mask(self.shape, _near(0.5, rng), _near(0.5, rng), radius)
        return paint(_shade(self.ground, rng), (mask, _shade(self.colour, rng)))


@dataclass(frozen=True)
class Pair(Scene):
    """Two shapes in a relation: the first left of, above, or inside the second."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str
    ground: str
    kind = "pair"
    vocabulary: ClassVar = {
        "colour": _NAMES,
        "shape": SHAPES,
        "relation": ("left of", "above", "inside"),
        "other_colour": _NAMES,
        "other_shape": SHAPES,
        "ground": _NAMES,
    }

    def visible(self) -> bool:
        on_ground = contrast(self.other_colour, self.ground)
        if self.relation == "inside":
            return on_ground and self.other_shape in ("circle", "square") and contrast(self.colour, self.other_colour)
        return on_ground and contrast(self.colour, self.ground)

    def caption(self, rng: Random) -> str:
        what = f"{_a(self.colour)} {self.shape} {self.relation} {_a(self.other_colour)} {self.other_shape}"
        return rng.choice((f"{what} on {_a(self.ground)} background", f"{what} on {self.ground}"))

    def draw(self, rng: Random) -> Image.Image:
        x, y, radius, other_x, other_y, other_radius = {
            "left of": (0.25, 0.5, 0.21, 0.75, 0.5, 0.21),
            "above": (0.5, 0.25, 0.21, 0.5, 0.75, 0.21),
            "inside": (0.5, 0.5, 0.21, 0.5, 0.5, 0.46),
        }[self.relation]
        first = shape_mask(self.shape, _near(x, rng), _near(y, rng), radius)
        second = shape_mask(self.other_shape, _near(other_x, rng), _near(other_y, rng), other_radius)
        inks = _shade(self.other_colour, rng), _shade(self.colour, rng)
        return paint(_shade(self.ground, rng), (second, inks[0]), (first, inks[1]))


@dataclass(frozen=True)
class Pattern(Scene):
    """A regular pattern in two colours; the first is the ink."""

    colour: str
    pattern: str
    ground: str
    kind = "pattern"
    vocabulary: ClassVar = {"colour": _NAMES, "pattern": PATTERNS, "ground": _NAMES}

    def visible(self) -> bool:
        return contrast(self.colour, self.ground)

    def caption(self, rng: Random) -> str:
        what = f"{self.colour} {self.pattern}"
        return rng.choice(
            (
                f"{what} on {_a(self.ground)} background",
                f"{what} on {self.ground}",
                f"a pattern of {what} on {self.ground}",
            )
        )

    def draw(self, rng: Random) -> Image.Image:
        return paint(_shade(self.ground, rng), (pattern_mask(self.pattern), _shade(self.colour, rng)))


@dataclass(frozen=True)
class Word(Scene):
    """A written word of `WORDS`."""

    word: str
    colour: str
    ground: str
    kind = "word"
    vocabulary: ClassVar = {"word": WORDS, "colour": _NAMES, "ground": _NAMES}

    def visible(self) -> bool:
        return contrast(self.colour, self.ground)

    def caption(self, rng: Random) -> str:
        return rng.choice(
            (
                f"the word {self.word} in {self.colour} letters on {self.ground}",
                f"the word {self.word} written in {self.colour} on {_a(self.ground)} background",
                f"{self.word} in bold {self.colour} letters on {self.ground}",
            )
        )

    def draw(self, rng: Random) -> Image.Image:
        mask = ImageChops.offset(word_mask(self.word), rng.randint(-2, 2), rng.randint(-2, 2))
        return paint(_shade(self.ground, rng), (mask, _shade(self.colour, rng)))


KINDS: tuple[type[Scene], ...] = (Plain, Shape, Pair, Pattern, Word)
