"""Calibration of a finished run: its routes are fitted anew, to another budget or other traffic; nothing is trained.

`aptp.core.calibration` moves the experts to the budget before they are cut out; this moves the prompts between them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor

from aptp.bundle import CALIBRATION, FORMAT, Bundle, load_finished
from aptp.config import BudgetChoice
from aptp.core.balancer import heaviest
from aptp.core.errors import RequestError
from aptp.core.files import write_json
from aptp.core.record import Record
from aptp.core.router import PromptBatch, scores_of, serve
from aptp.core.transport import ot
from aptp.host import Host
from aptp.routing import read

NORMAL = 1.96
"""Standard errors on both sides of a mean that make its 95% interval."""
_CLOSE = 1e-3
"""A served cost within this share of the target is not searched further."""
_TRIES = 30
_STEEPEST = 500.0
"""The dearest expert's share is tilted against the cheapest's by at most exp(this)."""
_SMALLEST = 1e-9
"""Shares under this count as it: the exact solver prices no expert that is asked for nothing."""
_UNUSED = 1e-3
"""An expert that served a smaller share of the training prompts counts as having had this: any budget can be met."""
_PIVOTS = 10_000_000
"""At most so many steps of the exact solver."""


@dataclass(frozen=True)
class Effect:
    """What a bias does to given traffic."""

    load: list[float]
    """Each expert's share of the prompts."""
    cost: float
    """Of the average prompt, as a fraction of dense."""
    within: float
    """Half the 95% interval of that in all the traffic of which the prompts are a sample."""
    teacher_error: float | None
    """Predicted from the run's cross-routing; None where its record cannot tell."""


@dataclass(frozen=True)
class Calibration:
    """A bias that meets a budget on given traffic, and what it does there beside the one now in force."""

    bias: list[float]
    fractions: list[float]
    """The experts' costs."""
    budget: BudgetChoice
    prompts: int
    before: Effect
    after: Effect

    def save(self, run: Path) -> Path:
        """Put it in force: the run serves by it when it is next loaded. The run's own bias stays where it is."""
        said = {"format": FORMAT} | asdict(self) | {"budget": self.budget.model_dump(mode="json")}
        write_json(run / CALIBRATION, said)
        return run / CALIBRATION


def undo(run: Path) -> None:
    """Go back to the bias with which the run ended, or the bundle came; `RequestError` where that is in force."""
    file = run / CALIBRATION
    if not file.is_file():
        raise RequestError(f"{str(run)!r} has no calibration to undo: it serves as it came.")
    file.unlink()


def calibrate(run: Path, budget: str, prompts: Sequence[str], host: Host) -> Calibration:
    """Fit a finished run's bias to a budget over prompts; changes nothing on disk.

    A prompt that comes more than once counts as often. The fit starts from the run's own scores, whatever calibration
    is in force: to calibrate twice is to calibrate as the second time says.

    Raises:
        RequestError: for a run that is not done, prompts that cannot be served, or a budget that no routes can meet.
    """
    bundle = load_finished(run, host)
    asked, counts = _asked(run, bundle, budget), Counter(prompts)
    return fitted(bundle, asked, read(bundle, list(counts)), list(counts.values()))


@torch.no_grad()
def fitted(bundle: Bundle, budget: BudgetChoice, prompts: PromptBatch, counts: Sequence[int]) -> Calibration:
    """The same for a budget between the experts' costs, over prompts that each come `counts` times."""
    scores, total = scores_of(bundle.router, prompts), sum(counts)
    weights = torch.tensor(counts, dtype=torch.float64) / total
    costs = torch.tensor(bundle.fractions, dtype=torch.float64)
    load = torch.tensor(bundle.load, dtype=torch.float64).clamp(min=_UNUSED)
    bias = fit_bias(scores, weights, costs, load / load.sum(), budget.target)

    errors, cluster = None if bundle.manifest else _cross_errors(bundle.folder), serve(scores, bundle.own_bias)

    def effect(bias: Float[Tensor, "experts"]) -> Effect:
        route = serve(scores, bias)
        cost = float(weights @ costs[route])
        spread = math.sqrt(float(weights @ (costs[route] - cost).square()) / total)
        error = None if errors is None else float(weights @ errors[route, cluster])
        error = error if error is None or math.isfinite(error) else None
        return Effect(_load(route, weights, len(costs)).tolist(), cost, NORMAL * spread, error)

    return Calibration(bias.tolist(), bundle.fractions, budget, total, effect(bundle.bias), effect(bias))


def _asked(run: Path, bundle: Bundle, text: str) -> BudgetChoice:
    own = bundle.budget
    if own is None:
        raise RequestError(f"{str(run)!r} did not keep its budget; it was made by an earlier version of aptp.")
    try:
        asked = BudgetChoice.model_validate(text if ":" in text else f"{own.name}:{text}")
    except ValidationError as error:
        right = f"a share of the dense cost over 0 and at most 1, such as {own.name}:0.6"
        raise RequestError(f"a budget is {right}, not {text!r}.") from error
    if asked.name != own.name:
        raise RequestError(f"the budget of {str(run)!r} is in {own.name}, not {asked.name}; ask in {own.name}.")
    low, high = min(bundle.fractions), max(bundle.fractions)
    if len(bundle.fractions) == 1:
        raise RequestError(f"{str(run)!r} has one expert, at {low:.3f} of dense: there is nothing to calibrate.")
    if not low <= asked.target <= high:
        inside = f"{math.ceil(low * 1000) / 1000:.3f} to {math.floor(high * 1000) / 1000:.3f}"
        raise RequestError(f"a budget of {asked.target:g} is outside what the experts of {str(run)!r} cost, {inside}.")
    return own.model_copy(update={"target": asked.target})


def _cross_errors(run: Path) -> Float[Tensor, "experts clusters"] | None:
    """The teacher error of each expert on the prompts of each cluster, NaN where it is not known."""
    record = run / "record.json"
    cross = Record.load(record).routing.get("cross") if record.is_file() else None
    if cross is None:
        return None
    rows = [[math.nan if error is None else error for error in row] for row in cross["teacher_error"]]
    return torch.tensor(rows, dtype=torch.float64)


def fit_bias(
    scores: Float[Tensor, "prompts experts"],
    weights: Float[Tensor, "prompts"],
    costs: Float[Tensor, "experts"],
    load: Float[Tensor, "experts"],
    target: float,
) -> Float[Tensor, "experts"]:
    """The bias whose routes, argmax(scores + bias), cost `target` on average, as nearly as whole prompts allow.

    The experts' shares are those nearest to `load` that cost the target (`marginals`). Optimal transport with these
    shares maximises the total score; of all biases that serve its plan, the one whose least margin is largest is taken.
    Where prompts cannot be divided as the plan would (one that is much asked for, or many that score alike), the
    shares are asked for at a cost above or below, by bisection, until what is served costs the target.

    Args:
        weights: each prompt's share of the traffic; all float64, as are the results.
        target: between the least and the largest of `costs`.
    """
    rows, same = scores.unique(dim=0, return_inverse=True)
    mass = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, same, weights)
    low, high, asked = float(costs.min()), float(costs.max()), target
    missed, best = math.inf, torch.zeros_like(costs)
    for _ in range(_TRIES):
        bias = _prices(rows, heaviest(_plan(rows, mass, marginals(load, costs, asked)), rows))
        cost = float(mass @ costs[serve(rows, bias)])
        if abs(cost - target) < missed:
            missed, best = abs(cost - target), bias
        if missed <= _CLOSE * target:
            break
        low, high = (asked, high) if cost < target else (low, asked)
        asked = (low + high) / 2
    return best


def marginals(
    load: Float[Tensor, "experts"], costs: Float[Tensor, "experts"], target: float
) -> Float[Tensor, "experts"]:
    """The shares nearest to `load` whose mean cost is `target`: of all such, those of the least KL(shares ‖ load).

    They are load·exp(−λ·cost), scaled to sum to 1; λ is bisected. `load` is positive.
    """
    span = float(costs.max() - costs.min()) or 1.0
    low, high = -_STEEPEST / span, _STEEPEST / span
    shares = load
    for _ in range(80):
        middle = (low + high) / 2
        shares = (load.log() - middle * costs).softmax(0)
        low, high = (middle, high) if float(shares @ costs) > target else (low, middle)
    return shares


def _plan(
    scores: Float[Tensor, "rows experts"], mass: Float[Tensor, "rows"], shares: Float[Tensor, "experts"]
) -> Float[Tensor, "rows experts"]:
    if len(mass) == 1:  # there is but one plan, which the exact solver would call infeasible
        return mass[:, None] * shares
    shares = shares.clamp(min=_SMALLEST)
    return ot.emd(mass, shares / shares.sum(), -scores, numItermax=_PIVOTS)


def _prices(scores: Float[Tensor, "rows experts"], route: Int[Tensor, "rows"]) -> Float[Tensor, "experts"]:
    """The bias that serves `route`, an optimal plan's, with the largest least margin; bisected."""
    experts = scores.shape[1]
    ahead = torch.full((experts, experts), torch.inf, dtype=torch.float64)
    for expert in route.unique().tolist():  # how far its prompts are ahead of every other expert, at least
        mine = scores[route == expert]
        ahead[expert] = (mine[:, expert, None] - mine).amin(0)
    ahead.fill_diagonal_(torch.inf)
    low, high = 0.0, 1.0 + float(scores.max() - scores.min())
    bias, _ = _potentials(ahead)
    for _ in range(60):
        middle = (low + high) / 2
        found, consistent = _potentials(ahead - middle)
        low, high, bias = (middle, high, found) if consistent else (low, middle, bias)
    return bias - bias.mean()


def _potentials(ahead: Float[Tensor, "experts experts"]) -> tuple[Float[Tensor, "experts"], bool]:
    """The largest v ≤ 0 with v_k − v_j ≤ ahead[j, k] for all pairs, and whether there is one (Bellman and Ford)."""
    price = torch.zeros_like(ahead[0])
    for _ in range(len(price)):
        before, price = price, torch.minimum(price, (price[:, None] + ahead).amin(0))
    return price, bool(torch.equal(price, before))


def _load(route: Int[Tensor, "prompts"], weights: Float[Tensor, "prompts"], experts: int) -> Float[Tensor, "experts"]:
    return torch.zeros(experts, dtype=torch.float64).index_add_(0, route, weights)
