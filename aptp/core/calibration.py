"""Calibration: the threshold at which codes, as they are really served, meet the budget."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.core.architecture import harden
from aptp.core.budget import CostModel


def expected_cost(
    cost_model: CostModel, gates: Float[Tensor, "experts gates"], load: Float[Tensor, "experts"]
) -> float:
    """Cost of the average prompt, as a fraction of dense, when expert i serves the share `load[i]` of prompts."""
    return float((cost_model.fraction(gates) * load.double()).sum())


def calibrate(
    cost_model: CostModel, soft: Float[Tensor, "experts gates"], load: Float[Tensor, "experts"], target: float
) -> float:
    """The threshold on relaxed gates whose expected cost is nearest to `target`.

    Cost never rises with the threshold, so the levels (the distinct gate values, aligned) are bisected. One threshold
    serves all experts: it moves no route, because routing compares relaxed gates.

    Raises:
        RequestError: if the target is under the floor of the space.
    """
    cost_model.check(target)

    def cost(threshold: float) -> float:
        return expected_cost(cost_model, harden(cost_model.space, soft, threshold), load)

    values = cost_model.space.aligned(soft).flatten().unique()
    levels = torch.cat([soft.new_zeros(1), values, soft.new_full((1,), 2.0)]).tolist()
    low, high = 0, len(levels) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(levels[middle]) >= target else (low, middle)
    return min(levels[low], levels[high], key=lambda level: abs(cost(level) - target))
