"""Bundles: what is written serves the same; what was changed is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aptp
from aptp.pipeline import RoutedPipeline

PROMPTS = ["a red star", "the word STOP", "two blue dots"]


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


@pytest.fixture(scope="module")
def bundle(pipe: RoutedPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "one"
    pipe.save_pretrained(folder)
    return folder


def test_a_bundle_serves_what_its_run_serves(pipe: RoutedPipeline, bundle: Path) -> None:
    own = RoutedPipeline.from_pretrained(bundle, device="cpu")
    assert own.route(PROMPTS) == pipe.route(PROMPTS)
    for settings in ({"experts": [0, 1, 2]}, {"dense": True}):
        drawn, expected = (p(PROMPTS, num_inference_steps=2, seed=[1, 2, 3], **settings) for p in (own, pipe))
        for image, wanted in zip(drawn.images, expected.images, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(wanted))
