"""What every kind of scene is: a combination of attributes that can be said, drawn, and held out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from random import Random
from typing import ClassVar, Self
from zlib import crc32

from PIL import Image

HELD_OUT = 8
"""One combination in this many is kept for validation."""


@dataclass(frozen=True)
class Scene(ABC):
    """One combination of attributes of a kind; the fields are the attributes, `vocabulary` their possible values."""

    kind: ClassVar[str]
    vocabulary: ClassVar[dict[str, tuple[str, ...]]]

    @classmethod
    def random(cls, rng: Random) -> Self:
        """A combination that can be told in its picture."""
        while True:
            scene = cls(**{name: rng.choice(values) for name, values in cls.vocabulary.items()})
            if scene.visible():
                return scene

    @abstractmethod
    def visible(self) -> bool:
        """Whether the picture shows every attribute (no red on red)."""

    @abstractmethod
    def caption(self, rng: Random) -> str:
        """A sentence that names every attribute."""

    @abstractmethod
    def draw(self, rng: Random) -> Image.Image:
        """The picture, RGB, 64 × 64."""

    def held_out(self) -> bool:
        """Whether this combination is kept for validation: a hash of its attributes decides, whatever the seed."""
        return crc32("/".join((self.kind, *astuple(self))).encode()) % HELD_OUT == 0

    def neighbours(self) -> Iterator[Self]:
        """Every visible scene that differs from this one in exactly one attribute."""
        for name, values in self.vocabulary.items():
            for value in values:
                other = replace(self, **{name: value})
                if other != self and other.visible():
                    yield other
