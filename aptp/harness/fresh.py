"""The published code's start: what slicing made smaller is initialised anew, to show what that costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aptp.harness.training import generator_for


def renew(expert: nn.Module, dense: nn.Module, *key: Any) -> None:
    """Give every tensor whose shape is not the dense model's the values that torch initialises its layer with.

    The published code loads the dense weights into the smaller model and skips, without a word, those whose shapes do
    not fit. Key: what the new values are drawn by.
    """
    smaller = set(changed(expert, dense))
    expert.cpu()  # where draws are the same on every machine
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(*key, "fresh").initial_seed())
        for path, layer in expert.named_modules():
            own = dict(layer.named_parameters(recurse=False))
            kept = {name: p.detach().clone() for name, p in own.items() if f"{path}.{name}" not in smaller}
            if len(kept) < len(own):
                layer.reset_parameters()
                for name, value in kept.items():
                    own[name].data.copy_(value)


def changed(expert: nn.Module, dense: nn.Module) -> list[str]:
    """The names of an expert's tensors whose shapes are not the dense model's."""
    shapes = {name: value.shape for name, value in dense.named_parameters()}
    return [name for name, value in expert.named_parameters() if value.shape != shapes[name]]


def fresh_share(expert: nn.Module, dense: nn.Module) -> float:
    """Share of an expert's values that `renew` initialises anew."""
    sizes = {name: value.numel() for name, value in expert.named_parameters()}
    return sum(sizes[name] for name in changed(expert, dense)) / sum(sizes.values())
