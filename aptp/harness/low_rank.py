"""Low-rank training (LoRA, Hu et al. 2021) with peft: every matrix W learns a change BA, and is W + BA at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from aptp.harness.training import generator_for


@contextmanager
def low_rank(module: nn.Module, rank: int, *key: Any) -> Iterator[nn.Module]:
    """Inside, only low-rank changes of the linear and convolution layers are trained; after it, they are merged in.

    Args:
        module: changed in place. It can be gated as ever: a mask at a layer's input reaches its change too. After the
            context it is the stock class with its own layers again, and other weights.
        rank: of A [rank, in] and B [out, rank]; the change is BA, with no further scale, and starts at 0.
        key: what the random A are drawn by.

    The context that ends with an error leaves the module as it is then.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(*key, "low rank").initial_seed())
        tuner = LoraModel(module, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), "recovery")
    yield module
    tuner.merge_and_unload()
