"""The optimal brain surgeon by groups of a layer's inputs: what leaving some out costs, and what makes up for it.

Hassibi and Stork 1992; by groups as in Kurtic et al. 2023, "ZipLM: Inference-Aware Structured Pruning".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

LEAST = 1e-12
"""The mean square of a layer's inputs is taken to be at least this, so that one that gets only zeros has an inverse."""


@dataclass(frozen=True)
class Problem:
    """What a layer computes, as ‖(W′ − W)X‖² to be kept small: float64, a convolution's window part of its inputs."""

    weight: Float[Tensor, "out in"]
    hessian: Float[Tensor, "in in"]
    """Damped: positive definite."""
    sensitivity: float = 1.0
    """What a unit of squared error costs: the mean square of the loss's gradient at the layer's output."""

    @classmethod
    def damped(cls, layer: nn.Module, hessian: Float[Tensor, "in in"], damping: float, sensitivity: float) -> Problem:
        """With `damping` times the mean of the Hessian's diagonal added to it, in place."""
        diagonal = hessian.diagonal()
        diagonal += damping * diagonal.mean().clamp(min=LEAST)
        return cls(layer.weight.detach().double().flatten(1), hessian, sensitivity)


def elimination(problems: list[Problem], units: int) -> Float[Tensor, "units"]:
    """For each unit the weighted error once it and the units before it are gone, summed over the layers that take it.

    Units are equal runs of each layer's inputs; at every step that one goes which adds least.
    """
    weights = [problem.weight.clone() for problem in problems]
    inverses = [torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian)) for problem in problems]
    scores, error, left = weights[0].new_empty(units), weights[0].new_zeros(()), list(range(units))
    while left:
        added = torch.stack(
            [
                problem.sensitivity * _added_error(w, i, units)[left]
                for problem, w, i in zip(problems, weights, inverses, strict=True)
            ]
        ).sum(0)
        unit = left.pop(int(added.argmin()))
        error = scores[unit] = error + added.min()
        for weight, inverse in zip(weights, inverses, strict=True):
            _eliminate(weight, inverse, unit, units)
    return scores


def _added_error(weight: Tensor, inverse: Tensor, units: int) -> Float[Tensor, "units"]:
    """tr(W_u [H⁻¹]_uu⁻¹ W_uᵀ) of each unit; that of one that is gone means nothing."""
    size = len(inverse) // units
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    rows = weight.view(-1, units, size).permute(1, 2, 0)
    return (rows * torch.linalg.solve_ex(blocks, rows).result).sum((1, 2)).clamp(min=0)


def _eliminate(weight: Tensor, inverse: Tensor, unit: int, units: int) -> None:
    """Take a unit's inputs out, in place: the other weights make up for it, H⁻¹ becomes that of the inputs left."""
    size = len(inverse) // units
    mine = slice(unit * size, (unit + 1) * size)
    share = torch.linalg.solve(inverse[mine, mine], inverse[mine])
    weight -= weight[:, mine] @ share
    inverse -= inverse[:, mine] @ share
    weight[:, mine] = 0
    inverse[mine], inverse[:, mine] = 0, 0
    inverse[mine, mine] = torch.eye(size, dtype=inverse.dtype, device=inverse.device)


def update(problem: Problem, kept: Bool[Tensor, "units"]) -> Float[Tensor, "out in"]:
    """The weights that answer most like the layer's own without the inputs of the units that are not kept (zeros)."""
    stays = kept.to(problem.hessian.device).repeat_interleave(len(problem.hessian) // len(kept))
    wanted = problem.weight @ problem.hessian[:, stays]
    factor = torch.linalg.cholesky(problem.hessian[stays][:, stays])
    weight = torch.zeros_like(problem.weight)
    weight[:, stays] = torch.cholesky_solve(wanted.T, factor).T
    return weight
