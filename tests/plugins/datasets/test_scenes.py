from __future__ import annotations

import pickle
from collections import Counter
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from pydantic import ValidationError

from aptp.core.data import CaptionedDataset
from aptp.plugins.datasets._drawing import (
    COLOURS,
    GRADIENTS,
    PATTERNS,
    SHAPES,
    contrast,
    pattern_mask,
    shape_mask,
    word_mask,
)
from aptp.plugins.datasets._kinds import KINDS, WORDS, Plain, Scene, Shape, Word
from aptp.plugins.datasets.scenes import Scenes

SEEDS = st.integers(0, 2**32)


def small(seed: int = 0, count: int = 50) -> Scenes:
    return Scenes(Scenes.Options(seed=seed, train=count, validation=count))


def array(scene: Scene, seed: int = 0) -> np.ndarray:
    return np.asarray(scene.draw(Random(seed))).astype(float)


def test_defaults_and_sizes() -> None:
    options = Scenes.Options()
    assert (options.seed, options.train, options.validation) == (0, 6000, 1000)
    data = Scenes(Scenes.Options(train=7, validation=3))
    assert isinstance(data, CaptionedDataset)
    assert (len(data.samples("train")), len(data.samples("validation"))) == (7, 3)


@pytest.mark.parametrize("bad", [{"train": 0}, {"validation": -1}, {"sede": 1}])
def test_bad_options_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Scenes.Options(**bad)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        small().samples("test")


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_every_seed_is_deterministic_balanced_and_well_formed(seed: int) -> None:
    first, second = small(seed), small(seed)
    for split in ("train", "validation"):
        samples = first.samples(split)
        assert Counter(sample.kind for sample in samples) == {kind.kind: 10 for kind in KINDS}
        assert len({sample.id for sample in samples}) == 50
        for one, other in zip(samples, second.samples(split), strict=True):
            assert (one.id, one.caption, one.kind) == (other.id, other.caption, other.kind)
        for one, other in zip(samples[:10], second.samples(split), strict=False):
            picture = one.open()
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
            assert picture.tobytes() == other.open().tobytes() == one.open().tobytes()


@settings(max_examples=10, deadline=None)
@given(SEEDS, SEEDS)
def test_training_of_any_seed_never_meets_a_validation_combination(one: int, other: int) -> None:
    training, validation = small(one), small(other)
    assert not set(training.scenes("train")) & set(validation.scenes("validation"))
    captions = {sample.caption for sample in training.samples("train")}
    assert captions.isdisjoint(sample.caption for sample in validation.samples("validation"))


def test_another_seed_gives_other_scenes() -> None:
    assert small(0).scenes("train") != small(1).scenes("train")


def test_every_attribute_value_is_trained_on() -> None:
    scenes = Scenes(Scenes.Options(train=4000)).scenes("train")
    for kind in KINDS:
        for name, values in kind.vocabulary.items():
            assert {getattr(scene, name) for scene in scenes if isinstance(scene, kind)} == set(values)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(KINDS))
def test_a_caption_names_one_combination(seed: int, kind: type[Scene]) -> None:
    rng = Random(seed)
    scene = kind.random(rng)
    assert scene.visible()
    captions = {scene.caption(rng) for _ in range(20)}
    for other in scene.neighbours():
        assert other.visible()
        assert other != scene
        assert captions.isdisjoint(other.caption(rng) for _ in range(5))


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from(KINDS))
def test_a_neighbour_looks_different_and_a_redraw_alike(seed: int, kind: type[Scene]) -> None:
    rng = Random(seed)
    scene = kind.random(rng)
    again = np.abs(array(scene, 1) - array(scene, 2)).mean()
    for other in rng.sample(list(scene.neighbours()), 3):
        assert np.abs(array(scene, 1) - array(other, 1)).mean() > 0.4
    assert again < 25


def test_samples_travel_between_processes() -> None:
    sample = small().samples("train")[4]
    assert pickle.loads(pickle.dumps(sample)).open().tobytes() == sample.open().tobytes()


def test_fingerprint_follows_every_option() -> None:
    options = [Scenes.Options(), Scenes.Options(seed=1), Scenes.Options(train=10), Scenes.Options(validation=10)]
    prints = [Scenes(option).fingerprint() for option in options]
    assert len(set(prints)) == 4
    assert Scenes(Scenes.Options()).fingerprint() == prints[0]


def test_a_set_of_another_size_has_the_same_pictures() -> None:
    few, many = (Scenes(Scenes.Options(train=train)).samples("train") for train in (10, 20))
    assert [s.content for s in few] == [s.content for s in many[:10]]
    other = Scenes(Scenes.Options(seed=1, train=10)).samples("train")
    held_out = Scenes(Scenes.Options(train=10, validation=10)).samples("validation")
    assert len({s.content for s in (*many, *other, *held_out)}) == 40


def test_held_out_share_is_about_one_in_eight() -> None:
    rng = Random(0)
    held = sum(kind.random(rng).held_out() for kind in KINDS[1:] for _ in range(1000))
    assert 350 < held < 650


def test_a_scene_has_the_colours_that_it_names() -> None:
    middle = array(Shape("large", "red", "circle", "white"))[32, 32]
    corner = array(Shape("large", "red", "circle", "white"))[1, 1]
    assert np.abs(middle - COLOURS["red"]).max() <= 6
    assert np.abs(corner - COLOURS["white"]).max() <= 7
    fading = array(Plain("blue", "yellow", "left to right"))
    assert np.abs(fading[:, 0] - COLOURS["blue"]).max() < 12
    assert np.abs(fading[:, 63] - COLOURS["yellow"]).max() < 12
    assert np.ptp(array(Plain("green", "green", "none")), axis=(0, 1)).max() == 0


def test_contrast_is_symmetric_and_refuses_a_colour_on_itself() -> None:
    assert not any(contrast(colour, colour) for colour in COLOURS)
    assert all(contrast(one, other) == contrast(other, one) for one, other in combinations(COLOURS, 2))
    assert not contrast("red", "orange")
    assert contrast("black", "white")


def test_masks_are_all_different() -> None:
    masks: list[Image.Image] = [shape_mask(shape, 0.5, 0.5, 0.4) for shape in SHAPES]
    masks += [pattern_mask(pattern) for pattern in PATTERNS] + [word_mask(word) for word in WORDS]
    assert len({mask.tobytes() for mask in masks}) == len(SHAPES) + len(PATTERNS) + len(WORDS)
    assert len(GRADIENTS) == 3


@pytest.mark.parametrize("word", WORDS)
def test_words_fill_most_of_the_width_and_stay_inside(word: str) -> None:
    columns = np.flatnonzero(np.asarray(word_mask(word).reduce(4)).max(axis=0) > 64)
    assert columns[0] >= 1
    assert columns[-1] <= 62
    assert columns[-1] - columns[0] >= 52
    assert array(Word(word, "black", "white")).min() < 60


def test_words_are_the_same_with_and_without_libraqm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which Pillow finds on some machines: by default it lays letters out with it where it does."""
    words = [word_mask.__wrapped__(word).tobytes() for word in WORDS]
    monkeypatch.setattr(ImageFont.core, "HAVE_RAQM", not ImageFont.core.HAVE_RAQM)
    assert [word_mask.__wrapped__(word).tobytes() for word in WORDS] == words
