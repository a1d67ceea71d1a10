"""Multiply-accumulates: convolutions, linear layers and both attention products, in integers."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from aptp.core.anatomy import HEADS
from aptp.core.architecture import SearchSpace
from aptp.core.budget import BudgetEstimator, CostModel, Layer
from aptp.core.denoiser import Denoiser
from aptp.plugins.options import NoOptions


class MacsBudget(BudgetEstimator):
    """Counts one call of the denoiser on one input, with the text as long as it is.

    A dry run of a twin of the model on the meta device tells the sizes; nothing is computed.
    """

    Options = NoOptions

    def __init__(self, options: NoOptions) -> None: ...

    def profile(
        self, denoiser: Denoiser, module: nn.Module, space: SearchSpace, example_inputs: Mapping[str, Tensor]
    ) -> CostModel:
        anatomy = denoiser.anatomy(module)
        cuts = {cut.path: part for part in anatomy.width for cut in part.cuts}
        heads = {part.path: part for part in anatomy.width if part.kind in HEADS}
        layers = []

        def count(path: str, macs: int, part=None) -> None:
            layers.append(Layer(path, 0, macs // part.units, part) if part else Layer(path, macs))

        with torch.device("meta"):
            twin = type(module).from_config(module.config)
        nn.Module.to(twin, module.dtype)  # diffusers' own `to` warns about casts that do not matter here
        for path, layer in twin.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(
                    lambda layer, args, output, path=path: count(path, _layer_macs(layer, output), cuts.get(path))
                )
            elif isinstance(layer, Attention):
                layer.register_forward_hook(
                    lambda layer, args, kwargs, output, path=path: count(
                        path, _attention_macs(layer, args, kwargs), heads.get(path)
                    ),
                    with_kwargs=True,
                )
        with torch.no_grad():
            twin(**_to_meta(example_inputs))
        return CostModel(space, layers, "MACs")


def _layer_macs(layer: nn.Conv2d | nn.Linear, output: Tensor) -> int:
    """Every output value is a dot product of one row of the weight."""
    return output.numel() * prod(layer.weight.shape[1:])


def _attention_macs(attention: Attention, args: tuple, kwargs: dict) -> int:
    """QKᵀ and the product with V: two multiply-accumulates for every query, key and channel.

    In joint attention the queries and keys of the text stand beside the image's.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    queries = hidden.numel() // hidden.shape[1] if hidden.ndim == 4 else hidden.shape[0] * hidden.shape[1]
    keys = queries // hidden.shape[0] if context is None else context.shape[1]
    if getattr(attention, "add_q_proj", None) is not None and context is not None:
        keys += queries // hidden.shape[0]
        queries = hidden.shape[0] * keys
    return 2 * queries * keys * attention.inner_dim


def _to_meta(inputs: Mapping) -> dict:
    return {
        name: value.to("meta")
        if isinstance(value, Tensor)
        else _to_meta(value)
        if isinstance(value, Mapping)
        else value
        for name, value in inputs.items()
    }
