"""Where a search starts: on the codes that a static pruner's scores would choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from aptp.core.architecture import harden
from aptp.core.budget import CostModel
from aptp.core.calibration import calibrate
from aptp.core.files import replacing
from aptp.harness.pruning import looking_at_weights, pruner_context

if TYPE_CHECKING:
    from aptp.harness.workspace import Workspace

ROOM = 0.2
"""The share of what width gates can save that a start leaves closed to none: a search must have somewhere to go."""


def start_of_search(work: Workspace) -> Float[Tensor, "gates"] | None:
    """The logits that the codes of a run start from, if it says so; their scores are kept in the run directory."""
    if work.start is None:
        return None
    file = work.path("checkpoints/start.safetensors")
    if not file.exists():
        with looking_at_weights(work):
            scores = work.start.scores(pruner_context(work))
        with replacing(file) as temporary:
            save_file({"scores": scores.double().cpu().contiguous()}, temporary)
    config = work.config
    scores = load_file(file)["scores"]
    gates = starting_point(work.cost_model, scores, config.budget.target)
    told = work.space.width_gates & scores.isfinite()
    return torch.where(told, config.search.steepness * gates - config.relaxation.offset, 0.0).float()


def starting_point(cost_model: CostModel, scores: Float[Tensor, "gates"], target: float) -> Float[Tensor, "gates"]:
    """Width gates by their scores, on a logit scale whose zero is the threshold that meets the budget.

    Ranks replace scores, so that only their order counts: r of n gates becomes logit((r − ½)/n), less the threshold's.
    Blocks are taken to stay, because ordered depth comes of a softmax over all of them; where width alone cannot meet
    the budget, the threshold leaves a fifth of what it can save.
    """
    space = cost_model.space
    count = scores.numel()
    ranks = (scores.argsort(stable=True).argsort().double() + 0.5) / count
    shown = torch.where(space.width_gates, ranks, 1.0)
    floor = float(cost_model.fraction(harden(space, shown, threshold=1.0)))
    aim = max(target, floor + ROOM * (1 - floor))
    threshold = torch.tensor(calibrate(cost_model, shown[None], torch.ones(1), aim)).double()
    return ranks.logit() - threshold.clamp(0.5 / count, 1 - 0.5 / count).logit()
