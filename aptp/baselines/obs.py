"""OBS: second-order pruning that updates the weights which stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.baselines._surgeon import Problem, elimination, update
from aptp.baselines.options import OBSOptions
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, check_reach, keep_best, misfit


class OBSPruner(StaticPruner):
    """Drops units by the error that stays at the layer that consumes them when its other weights make up for it.

    H = XᵀX of that layer's inputs over calibration batches of the dense model, plus damping. Removing unit u adds
    tr(W_u [H⁻¹]_uu⁻¹ W_uᵀ) to the squared error of the layer's output; units go greedily, weights and H⁻¹ following. A
    unit's score is the error with it and all units of its site before it gone, times the mean square of the loss's
    gradient at that output: an estimate of what the loss rises, which compares across sites. The weights that stay are
    then the least-squares answer. Blocks all stay.

    All Hessians are held at once, in float64. (Hassibi and Stork 1992; by groups as in Kurtic et al. 2023, "ZipLM"; for
    diffusion models Zhu et al. 2025, "OBS-Diff". The factor is K-FAC's with one number for all outputs, Martens and
    Grosse 2015.)
    """

    Options = OBSOptions

    def __init__(self, options: OBSOptions) -> None:
        self.options = options

    def check(self, context: PrunerContext) -> None:
        if not context.space.width_gates.any():
            raise misfit(
                context,
                "pruner 'obs' drops units inside layers, and this space has whole blocks only; choose granularity "
                "width or width-depth",
            )
        check_reach(context, context.space.width_gates)

    def prune(self, context: PrunerContext) -> Pruned:
        self.check(context)
        problems = self.problems(context)
        scores = torch.full((context.space.num_gates,), torch.inf, dtype=torch.float64)
        width = [pair for pair in zip(context.space.sites, context.space.slices, strict=True) if not pair[0].is_block]
        for site, place in width:
            scores[place] = elimination([problems[tap] for tap in site.taps], site.units).cpu()
        architecture = keep_best(context, scores)
        weights = {}
        for site, place in width:
            kept = architecture.gates[place].bool()
            if kept.all():
                continue
            for tap in site.taps:
                old = context.module.get_submodule(tap).weight
                weights[f"{tap}.weight"] = update(problems[tap], kept).reshape(old.shape).to(old.dtype)
        return Pruned(architecture, weights)

    def problems(self, context: PrunerContext) -> dict[str, Problem]:
        """The least-squares problem of every layer that consumes the units of a site, by its path."""
        taps = {tap: context.module.get_submodule(tap) for site in context.space.sites for tap in site.taps}
        squares = dict.fromkeys(taps, 0.0)
        with _watched(taps) as (hessians, outputs):
            for loss in context.calibration_loss(batches=self.options.batches):
                for tap, slope in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
                    squares[tap] += float(slope.double().square().mean())
                outputs.clear()  # and with them the graph
        damping = self.options.damping
        return {tap: Problem.damped(layer, hessians.pop(tap), damping, squares[tap]) for tap, layer in taps.items()}


@contextmanager
def _watched(taps: dict[str, nn.Module]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Sum XᵀX over what the layers are called with inside the context, and keep their outputs till they are taken."""
    sums: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if path in outputs:  # it is computed again, for the gradient
                return
            outputs[path] = output
            for example in args[0].detach().split(1):
                rows = _rows(layer, example).double()
                sums[path] = sums.get(path, 0) + rows.T @ rows

        return hook

    with ExitStack() as stack:
        for path, layer in taps.items():
            stack.callback(layer.register_forward_hook(watch(path)).remove)
        yield sums, outputs


def _rows(layer: nn.Module, example: Tensor) -> Float[Tensor, "places in"]:
    """What each output is a linear function of: the channels of a place, for a convolution those of its window."""
    if not isinstance(layer, nn.Conv2d):
        return example.flatten(0, -2)
    window = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
    return nn.functional.unfold(example, **window)[0].T
