"""Hardness: do the prompts that suffer most from pruning get the costly experts?"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aptp.core.slicing import slice
from aptp.harness.correlation import spearman
from aptp.harness.exam import answers
from aptp.harness.training import generator_for
from aptp.harness.workspace import Workspace

TIMES = 2
"""Diffusion times, in the middle of equal parts of the schedule, at which every prompt is tried.

All prompts share them: a time of its own for each would say more of the time than of the prompt. With more of them, the
order of the prompts hardly changes.
"""


def hardness(work: Workspace, costs: Float[Tensor, "experts"], route: Int[Tensor, "pictures"]) -> dict[str, Any] | None:
    """Rank correlation of how much a prompt of the exam is hurt by pruning and what its expert costs.

    Returns:
        `spearman`, its 95% interval `low` to `high`, and the numbers of `prompts` and of `clusters` of those with one
        caption. None where all prompts are served at one cost, or where no correlation is defined.
    """
    served = costs[route]
    if bool((served == served[0]).all()):
        return None
    captions = work.validation.caption_of[work.exam.index]
    hurt = hurt_of_pruning(work, int(costs.argmin()))
    found = spearman(hurt.numpy(), served.numpy(), captions.numpy(), seed=work.config.seed)
    return found and {**found._asdict(), "prompts": len(route), "clusters": len(captions.unique())}


def hurt_of_pruning(work: Workspace, expert: int) -> Float[Tensor, "pictures"]:
    """How far an expert's slice, *before* recovery, is from the dense model on each picture of the exam, in float64.

    The mean over `TIMES` diffusion times of the squared error, divided at each time by its mean over the pictures, so
    that no time outweighs the others. What an expert learned in recovery, from its own prompts, has no part in it.
    """
    index, validation = work.exam.index, work.validation
    sliced = slice(work.dense, work.space, work.architectures[expert])
    generator = generator_for(work.config.seed, "hardness")
    times = work.pipeline.scheduler.config.num_train_timesteps
    hurt = torch.zeros(len(index), dtype=torch.float64)
    for place in range(TIMES):
        timestep = (2 * place + 1) * times // (2 * TIMES)
        example = work.noiser(validation.latents_of(index), validation.text_states(index), generator, timestep)
        away = answers(work, sliced, example) - answers(work, work.dense, example)
        error = away.square().flatten(1).mean(1).double()
        hurt += error / error.mean() / TIMES
    return hurt
