"""A pruner's context over a small model, and Taylor scores by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from aptp.core.pruner import PrunerContext
from aptp.testing import tiny_pruner_context, tiny_space, tiny_unet


@pytest.fixture
def asked() -> PrunerContext:
    """Width sites, and every block that can go."""
    unet = tiny_unet()
    return tiny_pruner_context(unet, tiny_space(unet))


@pytest.fixture
def taylor_by_hand() -> Callable[[PrunerContext, Iterable[Tensor]], Tensor]:
    """Σ |w · g| over what goes with each gate, from the names of the layers and an ordinary backward pass."""

    def scores(context: PrunerContext, losses: Iterable[Tensor]) -> Tensor:
        sum(losses).backward()
        layers = {"resnet_channels": {"conv1": 0, "conv2": 1, "time_emb_proj": 0}}
        layers["attention_heads"] = {"to_q": 0, "to_k": 0, "to_v": 0, "to_out.0": 1}
        layers["feedforward_units"] = {"net.0.proj": 0, "net.2": 1}
        value = {
            name: (p * p.grad).abs().double() if p.grad is not None else torch.zeros_like(p).double()
            for name, p in context.module.named_parameters()
            if p.ndim > 1
        }
        found = []
        for site in context.space.sites:
            if site.is_block:
                found.append(sum(v.sum() for name, v in value.items() if name.startswith(f"{site.path}.")))
                continue
            for unit in range(site.units):
                total = 0.0
                for name, side in layers[site.kind].items():
                    whole = value[f"{site.path}.{name}.weight"]
                    halves = whole.chunk(2) if name == "net.0.proj" else [whole]
                    total += sum(half.chunk(site.units, side)[unit].sum() for half in halves)
                found.append(total)
        context.module.zero_grad(set_to_none=True)
        return torch.stack([value.detach() for value in found])

    return scores
