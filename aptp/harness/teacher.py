"""Experts against the dense model: who errs how much on whose prompts, and the least that any routes could have had."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from aptp.harness.hardness import hardness
from aptp.harness.workspace import Workspace
from aptp.pipeline import RoutedPipeline


def exam_figures(work: Workspace, pipe: RoutedPipeline, route: Int[Tensor, "validation"]) -> dict[str, Any]:
    """What the record's `routing` says of a method by the run's exam: `oracle`, `cross` and, if defined, `hardness`."""
    errors, mine = work.exam.marks(pipe), route[work.exam.index]
    costs = torch.tensor(pipe.bundle.fractions, dtype=torch.float64)
    figures = {"oracle": oracle(errors, costs, mine), "cross": cross(errors, mine)}
    hard = hardness(work, costs, mine)
    return figures | ({"hardness": hard} if hard else {})


def oracle(
    errors: Float[Tensor, "pictures experts"], costs: Float[Tensor, "experts"], route: Int[Tensor, "pictures"]
) -> dict[str, float]:
    """The teacher error of a run's routing, and that of the best one, known after the fact, for the same mean cost.

    No router can be deployed that does this; what lies between the two is all that better routes to these experts could
    gain.
    """
    spent = float(costs[route].mean())
    return {
        "mean_cost": spent,
        "teacher_error": float(errors.gather(1, route[:, None]).mean()),
        "least_teacher_error": least_error(errors, costs, spent),
    }


def cross(errors: Float[Tensor, "pictures experts"], route: Int[Tensor, "pictures"]) -> dict[str, list]:
    """Cross-routing: the teacher error of expert i (row) on the prompts of cluster j (column), which expert j serves.

    A cluster without prompts has no error, nor has an error that is no number: both are None.
    """
    experts = errors.shape[1]
    prompts = route.bincount(minlength=experts)
    sums = torch.zeros(experts, experts, dtype=torch.float64).index_add_(0, route, errors.double())
    means = (sums / prompts[:, None]).T.tolist()
    return {
        "teacher_error": [[mean if math.isfinite(mean) else None for mean in row] for row in means],
        "prompts": prompts.tolist(),
    }


def least_error(errors: Float[Tensor, "pictures experts"], costs: Float[Tensor, "experts"], spent: float) -> float:
    """The least mean error of pictures on experts whose mean cost is at most `spent`.

    A linear program, in which pictures may be divided between experts; at its optimum at most one is. Its solver's
    tolerances are absolute, so errors are scaled. NaN where it finds no answer.
    """
    count, experts = errors.shape
    scale = float(errors.max()) or 1.0
    each = sparse.kron(sparse.eye(count), np.ones((1, experts)))
    cost = np.tile(costs.numpy(), count)[None]
    if not math.isfinite(scale):
        return math.nan
    errors = errors.flatten().numpy() / scale
    best = linprog(errors, cost, [count * spent * (1 + 1e-12)], each, np.ones(count), bounds=(0, 1))
    return scale * float(best.fun) / count if best.success else math.nan
