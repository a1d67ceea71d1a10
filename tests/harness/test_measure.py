"""Measured memory of a call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aptp.core.architecture import Architecture
from aptp.core.slicing import slice
from aptp.harness import measure
from aptp.harness.measure import _LiveTensors, peak_memory_mb
from aptp.plugins.denoisers.unet import UNetDenoiser
from aptp.testing import tiny_space, tiny_unet


def weights_mb(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6


def test_live_tensors_of_a_known_program() -> None:
    x = torch.zeros(1000)  # made outside: not counted
    with _LiveTensors() as live:
        a = x + 1  # 4000 bytes
        b = a * 2  # 8000
        del a  # 4000
        c = torch.cat([b, b])  # 12000
        view = c[:10]
        c.mul_(2)
    assert live.peak == 12000
    assert live.now == 12000
    del b, c, view
    assert live.now == 0


def test_peak_is_at_least_the_weights_and_grows_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, family = tiny_unet("sd2"), UNetDenoiser()
    small = peak_memory_mb(family, unet, 8, 5)
    assert small > weights_mb(unet)
    assert peak_memory_mb(family, unet, 8, 5) == small, "the figure is repeatable"
    large = peak_memory_mb(family, unet, 16, 5)
    assert large - weights_mb(unet) > 3 * (small - weights_mb(unet))
    monkeypatch.setattr(measure, "BATCH", 16)
    twice = peak_memory_mb(family, unet, 8, 5)
    assert twice - weights_mb(unet) == pytest.approx(2 * (small - weights_mb(unet)), rel=0.1)


def test_a_slice_takes_less_memory_than_the_dense_model() -> None:
    unet, family = tiny_unet("sd2"), UNetDenoiser()
    space = tiny_space(unet)
    lean = slice(unet, space, Architecture.random(space, keep=0.3, seed=0))
    assert weights_mb(lean) < peak_memory_mb(family, lean, 8, 5) < peak_memory_mb(family, unet, 8, 5)


def test_text_and_time_of_xl_models_are_batched_too() -> None:
    assert peak_memory_mb(UNetDenoiser(), tiny_unet("sdxl"), 8, 5) > 0
