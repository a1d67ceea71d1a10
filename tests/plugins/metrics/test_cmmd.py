from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aptp.core.errors import RequestError
from aptp.core.metric import GenerationBatch
from aptp.plugins.metrics import cmmd
from aptp.plugins.metrics._features import load_features
from aptp.plugins.metrics.cmmd import CMMD, squared_mmd


def direct(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]))

    return 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def metric(folder: Path, batches: list[GenerationBatch]) -> CMMD:
    made = CMMD(CMMD.Options(features=str(folder)))
    for batch in batches:
        made.update(batch)
    return made


@pytest.mark.parametrize("rows", [3, 2048])
def test_squared_mmd_is_the_sum_over_all_pairs(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cmmd, "ROWS", rows)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)), rng.normal(0.5, 1, size=(31, 8))
    assert squared_mmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(direct(x, y), rel=1e-9)
    assert squared_mmd(torch.tensor(x), torch.tensor(x)) == pytest.approx(0, abs=1e-9)


def test_figures(clip_folder: Path, batches: list[GenerationBatch]):
    figures = metric(clip_folder, batches).compute()
    features = load_features(str(clip_folder))
    generated = torch.cat([features.images(batch.images) for batch in batches]).double().numpy()
    real = torch.cat([features.images(batch.references) for batch in batches]).double().numpy()
    assert list(figures) == ["cmmd_small-clip", "cmmd_small-clip_half", "cmmd_small-clip_floor"]
    assert figures["cmmd_small-clip"] == pytest.approx(direct(generated, real), rel=1e-6)
    assert 0 < figures["cmmd_small-clip_floor"] < figures["cmmd_small-clip_half"]


def test_perfect_pictures_are_at_the_floor(clip_folder: Path, batches: list[GenerationBatch]):
    perfect = [GenerationBatch(b.references, b.prompts, b.references, b.experts) for b in batches]
    figures = metric(clip_folder, perfect).compute()
    assert figures["cmmd_small-clip"] == pytest.approx(0, abs=1e-9)
    assert figures["cmmd_small-clip_half"] == pytest.approx(figures["cmmd_small-clip_floor"], rel=1e-9)


def test_batches_make_no_difference(clip_folder: Path, batches: list[GenerationBatch]):
    first, second = batches
    joined = GenerationBatch(
        torch.cat([first.images, second.images]),
        [*first.prompts, *second.prompts],
        torch.cat([first.references, second.references]),
        torch.cat([first.experts, second.experts]),
    )
    apart, together = metric(clip_folder, batches), metric(clip_folder, [joined])
    assert together.compute() == pytest.approx(apart.compute(), rel=1e-3)
    assert apart.compute() == apart.compute()


def test_too_few_pictures(clip_folder: Path, batches: list[GenerationBatch]):
    with pytest.raises(RequestError, match="was given 0 pictures; evaluate at least 4"):
        metric(clip_folder, []).compute()
    b = batches[0]
    three = GenerationBatch(b.images[:3], b.prompts[:3], b.references[:3], b.experts[:3])
    with pytest.raises(RequestError, match="was given 3 pictures"):
        metric(clip_folder, [three]).compute()
