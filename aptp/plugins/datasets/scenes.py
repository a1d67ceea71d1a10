"""Procedural captioned scenes of graded difficulty: plain grounds, a shape, two shapes, patterns, written words.

64 × 64 RGB pictures from a seed, drawn when they are opened. The kind of a scene is kept for analysis and never shown
to training. One combination of attributes in eight is held out: validation captions are combinations (a word in these
two colours, this shape above that one) which training never sees, and the same ones for every seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from random import Random

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from aptp.core.data import CaptionedDataset, Sample, Split

from ._kinds import KINDS, Scene

VERSION = 3
"""Raised whenever the same options would give other captions or pictures."""


def draw_scene(scene: Scene, seed: str) -> Image.Image:
    """The picture of a scene; `seed` settles what the caption leaves open."""
    return scene.draw(Random(seed))


class Scenes(CaptionedDataset):
    """The procedural data set `scenes`; the five kinds are equally frequent in each split."""

    class Options(BaseModel):
        """The source of randomness and the number of samples of each split."""

        model_config = ConfigDict(extra="forbid")

        seed: int = Field(0, description="of the scenes")
        train: int = Field(6000, ge=1, description="number of training samples")
        validation: int = Field(1000, ge=1, description="number of validation samples")

    def __init__(self, options: Options) -> None:
        self.options = options

    def scenes(self, split: Split) -> list[Scene]:
        """The combinations behind `samples`, in the same order."""
        if split not in ("train", "validation"):
            raise ValueError(f"scenes has no split {split!r}: choose 'train' or 'validation'.")
        count = self.options.train if split == "train" else self.options.validation
        return [self._scene(split, index) for index in range(count)]

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split; kinds take turns, so that every prefix is balanced."""
        samples = []
        for index, scene in enumerate(self.scenes(split)):
            name = self._name(split, index)
            caption = scene.caption(Random(f"{name} caption"))
            seed = f"{name} picture"
            drawn = partial(draw_scene, scene, seed)
            samples.append(Sample(name, caption, drawn, scene.kind, content=f"scenes {VERSION} {seed}"))
        return samples

    def fingerprint(self) -> str:
        """A hash of the options and of the version of the drawing."""
        return hashlib.sha256(f"scenes {VERSION} {self.options.model_dump_json()}".encode()).hexdigest()

    def _name(self, split: Split, index: int) -> str:
        return f"{self.options.seed}-{split}-{index:06d}"

    def _scene(self, split: Split, index: int) -> Scene:
        rng = Random(f"{self._name(split, index)} scene")
        kind = KINDS[index % len(KINDS)]
        while True:
            scene = kind.random(rng)
            if scene.held_out() == (split == "validation"):
                return scene
