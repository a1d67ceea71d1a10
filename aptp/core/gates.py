"""Gates on a stock diffusers model, attached from outside by hooks and taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.core.anatomy import Part, submodule
from aptp.core.architecture import SearchSpace
from aptp.core.errors import RequestError

INPUTS = ("hidden_states", "encoder_hidden_states")
"""The first arguments of diffusers' blocks, in the order in which they are given by place."""


@contextmanager
def gated(
    module: nn.Module, space: SearchSpace, gates: Float[Tensor, "gates"] | Float[Tensor, "batch gates"]
) -> Iterator[nn.Module]:
    """Run `module` with every unit of every site multiplied by its gate.

    Args:
        module: the stock denoiser; its weights are not touched, and leaving the context gives back the same bits.
        space: the gated sites.
        gates: [G] for all inputs alike, or [batch, G] with one row an input. A model called with k times that batch (as
            classifier-free guidance does, conditions stacked one after the other) uses the rows k times over. Hard or
            relaxed; gradients flow to them.

    With 0/1 gates the output is that of the sliced model up to rounding.
    """
    if gates.ndim not in (1, 2) or gates.shape[-1] != space.num_gates:
        raise RequestError(
            f"gates of this space are [{space.num_gates}] or [batch, {space.num_gates}], not {tuple(gates.shape)}."
        )
    rows = gates.reshape(-1, space.num_gates)
    with ExitStack() as stack:
        for site, place in zip(space.sites, space.slices, strict=True):
            attach = _gate_block if site.is_block else _mask_width
            for handle in attach(module, site, rows[:, place]):
                stack.callback(handle.remove)
        yield module


def _mask_width(module: nn.Module, site: Part, gates: Float[Tensor, "rows units"]) -> list[Any]:
    def hook(tap: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        channels = hidden.shape[site.channel_dim]
        mask = _rows_for(hidden, gates.to(hidden)).repeat_interleave(channels // site.units, dim=1)
        shape = [mask.shape[0]] + [1] * (hidden.ndim - 1)
        shape[site.channel_dim] = channels
        return hidden * mask.view(shape), *rest

    return [submodule(module, tap).register_forward_pre_hook(hook) for tap in site.taps]


def _gate_block(module: nn.Module, site: Part, gates: Float[Tensor, "rows 1"]) -> list[Any]:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        def mix(passed: Tensor, leaving: Tensor | None) -> Tensor | None:
            if leaving is None:  # a stream that ends in this block
                return None
            gate = _rows_for(leaving, gates.to(leaving)).view(-1, *[1] * (leaving.ndim - 1))
            return torch.lerp(passed.to(leaving.dtype), leaving, gate.expand_as(leaving))

        entering = passed_on(site, args, kwargs)
        if isinstance(output, tuple):
            return *map(mix, entering, output), *output[len(entering) :]
        if isinstance(output, Tensor):
            return mix(entering[0], output)
        return type(output)(sample=mix(entering[0], output.sample))

    return [submodule(module, site.path).register_forward_hook(hook, with_kwargs=True)]


def without_gates(copied: nn.Module) -> nn.Module:
    """`copied`, without the gates that a copy made inside `gated` has inherited."""
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for handle in [handle for handle, hook in hooks.items() if hook.__module__ == __name__]:
                del hooks[handle]
    return copied


def passed_on(site: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What a block was called with, by place or by name, that passes for its answer when it goes: one a stream."""
    passed = []
    for name in site.streams or INPUTS[:1]:
        place = INPUTS.index(name)
        entering = args[place] if place < len(args) else kwargs[name]
        passed.append(entering[:, : site.channels] if entering.ndim == 4 else entering)
    return passed


def _rows_for(hidden: Tensor, gates: Float[Tensor, "rows units"]) -> Float[Tensor, "batch units"]:
    """`gates` repeated to the batch of `hidden`; a single row stays single and broadcasts."""
    rows, batch = gates.shape[0], hidden.shape[0]
    if rows == 1 or rows == batch:
        return gates
    if batch % rows:
        raise RequestError(f"gates for {rows} inputs do not fit a batch of {batch}, which is no multiple of {rows}.")
    return gates.repeat(batch // rows, 1)
