"""Parameters: what an expert weighs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from aptp.core.architecture import SearchSpace
from aptp.core.budget import BudgetEstimator, CostModel, Layer
from aptp.core.denoiser import Denoiser
from aptp.plugins.options import NoOptions


class ParamsBudget(BudgetEstimator):
    """Counts every parameter; a bias shrinks with the output of its layer, never with its input."""

    Options = NoOptions

    def __init__(self, options: NoOptions) -> None: ...

    def profile(
        self, denoiser: Denoiser, module: nn.Module, space: SearchSpace, example_inputs: Mapping[str, Tensor]
    ) -> CostModel:
        cuts = {cut.path: (part, cut) for part in denoiser.anatomy(module).width for cut in part.cuts}
        layers = []
        for path, layer in module.named_modules():
            found = cuts.get(path)
            for parameter in layer.parameters(recurse=False):
                size = parameter.numel()
                if found and (found[1].side == "out" or parameter.ndim > 1):
                    layers.append(Layer(path, 0, size // found[0].units, found[0]))
                else:
                    layers.append(Layer(path, size))
        return CostModel(space, layers, "parameters")
