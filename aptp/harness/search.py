"""The search: the router learns codes and who goes where, the denoiser's weights frozen; then calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from aptp.bundle import expert_folder, load_bundle
from aptp.core import distributed
from aptp.core.architecture import Architecture, harden
from aptp.core.calibration import calibrate, expected_cost
from aptp.core.errors import RequestError
from aptp.core.gates import gated
from aptp.core.objective import resource_loss, spread_loss
from aptp.core.pruner import Pruned, StaticPruner
from aptp.core.router import load_of, perplexity, serve
from aptp.harness.pruning import prune
from aptp.harness.training import batch_index, generator_for, micro_batches, recomputing
from aptp.harness.workspace import Workspace

FAR_FROM_TARGET = 0.05
"""An uncalibrated cost further than this share from the target is worth a warning."""
FEW_IN_USE = 0.75
"""So is a perplexity of the experts' loads under this share of their number."""


@dataclass(frozen=True)
class Found:
    """What the search leaves: experts' architectures, how prompts are served, and the figures on the way."""

    architectures: list[Architecture]
    bias: Float[Tensor, "experts"]
    threshold: float
    load: Float[Tensor, "experts"]
    uncalibrated: float
    expected: float
    weights: dict[str, Tensor]
    """Weights that a pruner updated, by name; empty where an expert starts as a true slice."""


def search(work: Workspace) -> Found:
    """Train the router, if it learns (or ask the static pruner); fit serving bias and threshold on training prompts."""
    if work.pruner is not None:
        return _pruned(work, work.pruner)
    found = _learned(work)
    return _as_served(work, found) if work.sliced else found


def _as_served(work: Workspace, found: Found) -> Found:
    """What was found as the run has it on disk: decided on another machine, near ties may have fallen otherwise."""
    kept = load_bundle(work.out, work.host, work.encoder)
    work.router.load_state_dict(kept.router.state_dict())
    homes = [work.path(expert_folder(index)) for index in range(len(kept.fractions))]
    architectures = [Architecture.load(home / "architecture.json") for home in homes]
    if any(each.space.signature != work.space.signature for each in architectures):
        raise RequestError(f"the experts in {str(work.out)!r} are of another search space; choose another --out.")
    scores = distributed.shared(work.scores(work.train))
    load = load_of(serve(scores, kept.own_bias), len(architectures))
    expected = expected_cost(work.cost_model, torch.stack([each.gates for each in architectures]), load)
    return replace(found, architectures=architectures, bias=kept.own_bias, load=load, expected=expected)


def _learned(work: Workspace) -> Found:
    with distributed.main_first():  # which scores the gates that a search starts from
        router = work.router
    distributed.agree(router)
    if work.router.learns:
        _train_router(work)
    work.router.eval()
    scores = distributed.shared(work.scores(work.train))
    bias = work.router_context.balancer.serving_bias(scores)
    load = load_of(serve(scores, bias), scores.shape[1])
    with torch.no_grad():
        soft = distributed.shared(work.router.codes().cpu())
    target = work.config.budget.target
    threshold = calibrate(work.cost_model, soft, load, target)
    gates = harden(work.space, soft, threshold)
    uncalibrated = expected_cost(work.cost_model, harden(work.space, soft), load)
    expected = expected_cost(work.cost_model, gates, load)
    if work.router.learns and abs(uncalibrated / target - 1) > FAR_FROM_TARGET:
        work.warn(
            f"the search ended at {uncalibrated:.3f} of the dense cost, far from the target of {target:g}; "
            f"calibration moved it to {expected:.3f}. Search longer, or with another rate or offset."
        )
    if (used := perplexity(load)) < FEW_IN_USE * len(load):
        work.warn(
            f"in effect only {used:.1f} of {len(load)} experts serve the training prompts. Choose the balancer "
            "sinkhorn, with a smaller epsilon if it was this one, or fewer experts."
        )
    architectures = [Architecture(work.space, row) for row in gates.float()]
    return Found(architectures, bias, threshold, load, uncalibrated, expected, {})


def _pruned(work: Workspace, pruner: StaticPruner) -> Found:
    def one_code() -> Pruned:
        found = _learned(work)
        return Pruned(found.architectures[0], uncalibrated=found.uncalibrated)

    if work.sliced:  # scores that nearly tie may fall out otherwise on another machine
        kept = Architecture.load(work.path(f"{expert_folder(0)}/architecture.json")).gates
        searched = one_code().uncalibrated if pruner.searches else None
        pruned = Pruned(Architecture(work.space, kept), uncalibrated=searched)
    else:
        pruned = prune(work, pruner, one_code)
    cost = float(work.cost_model.fraction(pruned.architecture.gates))
    return Found(
        [pruned.architecture],
        torch.zeros(1).double(),
        0.5,
        torch.ones(1).double(),
        cost if pruned.uncalibrated is None else pruned.uncalibrated,
        cost,
        dict(pruned.weights or {}),
    )


def _train_router(work: Workspace) -> None:
    config, options = work.config, work.config.search
    router, relaxation = work.router.train(), work.router_context.relaxation

    def learn(step: int) -> dict[str, Tensor]:
        """The router sees all rows of this process at once, the denoiser a micro-batch at a time.

        So what depends on the whole batch (transport, contrast, cost) does not on how the denoiser's share is divided,
        and the gates' gradient is gathered before it goes on into the router.
        """
        index = batch_index(len(work.train), options.batch, step, config.seed, "search")
        generator = generator_for(config.seed, "search", step)
        noised = work.noiser.draw(work.train.latents_of(index, generator), generator)
        parts = micro_batches(options)
        mine = slice(parts[0].start, parts[-1].stop)
        prompts = work.train.prompts(index[mine]).to(work.device)
        timesteps = noised.timesteps[mine].to(work.device)
        routing = router(prompts, step=step, generator=generator, timesteps=timesteps)
        gates = routing.gates.detach().requires_grad_()
        of_part = gates.split(len(gates) // len(parts))
        seen = work.distiller.learn(
            work.dense,
            [work.noiser.example(noised, rows, work.train.text_states(index[rows])) for rows in parts],
            options.weights,
            lambda place: gated(work.dense, work.space, of_part[place]),
        )
        cost = distributed.gather(work.cost_model.fraction(routing.gates))
        own = (routing.index < 0).all()
        costs = cost if own else work.cost_model.fraction(relaxation.straight_through(router.codes()))
        terms = {
            "resource": options.resource * resource_loss(cost, config.budget.target),
            "spread": options.spread * spread_loss(costs),
            **routing.losses,
        }
        of_router = sum(terms.values())
        (of_router + (routing.gates * gates.grad).sum()).backward()
        return {**seen, **terms, "cost": cost.mean(), "loss": seen["loss"] + of_router}

    with recomputing(work.dense, config.checkpointing):
        rates = dict.fromkeys(router.code_parameters, (options.code_rate or options.rate) / options.rate)
        work.fit("search", "searching for experts", router, options, learn, rates)
