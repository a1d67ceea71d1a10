"""How many steps recovery takes: in all, together, and each expert on its own."""

from __future__ import annotations

import json

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aptp.bundle import expert_folder
from aptp.config import RecoverOptions
from aptp.core import distributed
from aptp.core.errors import RequestError
from aptp.core.files import write_json
from aptp.core.slicing import load_expert
from aptp.harness.exam import answers
from aptp.harness.training import WHOLE, batch_index, generator_for
from aptp.harness.workspace import Workspace

TRIED = 64
"""Training pictures on which what is left of an expert's error is measured."""


def total_steps(options: RecoverOptions, load: Float[Tensor, "experts"]) -> int:
    """Steps of both phases, all experts together; one that serves nobody takes none."""
    return options.steps * _allowances(options, load)


def joint_steps(options: RecoverOptions, load: Float[Tensor, "experts"]) -> int:
    """Those of the joint phase; a single expert has none."""
    return round(options.joint * options.steps) * _allowances(options, load) if len(load) > 1 else 0


def parts_of_schedule(options: RecoverOptions, experts: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """What the joint phase takes of the rate's schedule, and what an own phase does.

    One schedule lasts over both, unless the second is to start anew: the full rate in a short phase undoes some of what
    the first has learnt.
    """
    if experts < 2 or options.restart or not options.steps:
        return WHOLE, WHOLE
    joint = round(options.joint * options.steps) / options.steps
    return (0.0, joint), (joint, 1.0)


def _allowances(options: RecoverOptions, load: Float[Tensor, "experts"]) -> int:
    """How often `options.steps` are given."""
    return int((load > 0).sum()) if options.per == "expert" else 1


def own_steps(work: Workspace, route: Int[Tensor, "pictures"], load: Float[Tensor, "experts"]) -> list[int]:
    """The own steps of each expert, by `recover.per` and `recover.share`; ask after the joint phase."""
    options = work.config.recover
    steps = total_steps(options, load) - joint_steps(options, load)
    if options.per == "expert":
        return shared_out(steps, (load > 0).double())
    if options.share == "load" or not steps:
        return shared_out(steps, load)
    weights = load * _remaining_errors(work, route, len(load))
    return shared_out(steps, weights if weights.sum() > 0 else load)


def shared_out(steps: int, weights: Float[Tensor, "experts"]) -> list[int]:
    """Whole steps in proportion to the weights, by largest remainders; an expert of weight 0 gets none."""
    exact = steps * (weights / weights.sum())
    whole = exact.floor()
    rest = int(steps - whole.sum())
    if rest:
        whole[(exact - whole).topk(rest).indices] += 1
    return [int(share) for share in whole]


def _remaining_errors(work: Workspace, route: Int[Tensor, "pictures"], experts: int) -> Float[Tensor, "experts"]:
    """Teacher error of each expert on training pictures that it serves, 0 for one that serves none.

    Measured once, before the first own step, and kept: a resumed run, whose experts may have moved on, shares out the
    same steps.
    """
    file = work.path("checkpoints/recover-errors.json")
    with distributed.main_first():
        if not file.is_file():
            write_json(file, [_error_on(work, index, (route == index).nonzero().flatten()) for index in range(experts)])
    try:
        errors = torch.tensor(json.loads(file.read_text(encoding="utf-8")), dtype=torch.float64)
        if errors.shape != (experts,):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"{str(file)!r} does not hold the errors of {experts} experts; delete it to measure them anew."
        ) from error
    return errors


def _error_on(work: Workspace, index: int, pictures: Int[Tensor, "mine"]) -> float:
    """The same noise and times for every expert, so that these do not tell experts apart."""
    if not len(pictures):
        return 0.0
    seed = work.config.seed
    chosen = pictures[batch_index(len(pictures), TRIED, 0, seed, "remaining error")]
    generator = generator_for(seed, "remaining error")
    example = work.noiser(work.train.latents_of(chosen), work.train.text_states(chosen), generator)
    expert = load_expert(work.path(expert_folder(index))).to(work.device)
    return float((answers(work, expert, example) - answers(work, work.dense, example)).double().square().mean())
