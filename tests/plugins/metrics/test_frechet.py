from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from aptp.core.metric import GenerationBatch
from aptp.plugins.metrics._features import load_features
from aptp.plugins.metrics.frechet import FrechetDistance, frechet_distance


def direct(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(mean + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


def test_equals_the_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.3, 1, size=(200, 12))
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(direct(x, y), rel=1e-6)
    assert frechet_distance(torch.tensor(x), torch.tensor(x)) == pytest.approx(0, abs=1e-6)


def test_fewer_pictures_than_dimensions_stay_finite():
    x, y = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert 0 < frechet_distance(x, y) < 1000


@pytest.mark.parametrize("perfect", [False, True])
def test_figures(clip_folder: Path, batches: list[GenerationBatch], perfect: bool):
    metric, features = (
        FrechetDistance(FrechetDistance.Options(features=str(clip_folder))),
        load_features(str(clip_folder)),
    )
    if perfect:
        batches = [GenerationBatch(b.references, b.prompts, b.references, b.experts) for b in batches]
    for batch in batches:
        metric.update(batch)
    figures = metric.compute()
    generated = torch.cat([features.images(batch.images) for batch in batches]).double().numpy()
    real = torch.cat([features.images(batch.references) for batch in batches]).double().numpy()
    assert list(figures) == ["frechet_small-clip", "frechet_small-clip_half", "frechet_small-clip_floor"]
    assert figures["frechet_small-clip"] == pytest.approx(direct(generated, real), rel=1e-4, abs=1e-6)
    if perfect:
        assert figures["frechet_small-clip_half"] == pytest.approx(figures["frechet_small-clip_floor"], rel=1e-6)
    else:
        assert 0 < figures["frechet_small-clip_floor"] < figures["frechet_small-clip_half"]
