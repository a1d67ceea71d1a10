"""Conformance of denoisers, granularities, budgets and static pruners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aptp.api import denoiser_of
from aptp.core.architecture import Architecture, SearchSpace
from aptp.core.budget import BudgetEstimator
from aptp.core.denoiser import Denoiser
from aptp.core.errors import RequestError
from aptp.core.gates import gated
from aptp.core.granularity import Granularity
from aptp.core.pruner import Pruned, PrunerContext, StaticPruner, keep_best
from aptp.core.slicing import slice
from aptp.testing.models import MODELS, tiny_cost_model, tiny_inputs, tiny_space, tiny_unet


def check_denoiser(denoiser: Denoiser, module: nn.Module, sample_size: int = 8, text_tokens: int = 5) -> None:
    """Its anatomy names modules that exist, and masked equals sliced, all parts gated, on its own example inputs."""
    assert denoiser.supports(module)
    anatomy = denoiser.anatomy(module)
    names = dict(module.named_modules())
    for part in anatomy.parts:
        assert {part.path, *part.taps, *part.inside, *(cut.path for cut in part.cuts)} <= names.keys(), part
        assert part.is_block or (part.channels > 0 and part.channels % part.units == 0), f"{part}: its channels"
    assert set(anatomy.last_blocks) <= {part.path for part in anatomy.blocks}
    assert set(denoiser.blocks(module)) <= names.keys()
    _masked_equals_sliced(
        module, SearchSpace(anatomy.parts), lambda m: denoiser.example_inputs(m, sample_size, text_tokens)
    )


def check_granularity(granularity: Granularity) -> None:
    """On each family where it finds sites: they are parts of the anatomy in its order, and masked equals sliced."""
    found = False
    for family, make in MODELS.items():
        model = make()
        anatomy = denoiser_of(model).anatomy(model)
        sites = list(granularity.sites(anatomy))
        if not sites:
            continue
        found = True
        assert sites == [part for part in anatomy.parts if part in sites], f"{family}: sites out of order or made up"
        space = SearchSpace(tuple(sites), granularity.align)
        _masked_equals_sliced(model, space, lambda m: tiny_inputs(m, 2, m.dtype))
    assert found, "it gates nothing in any family"


def _masked_equals_sliced(module: nn.Module, space: SearchSpace, inputs: Callable[[nn.Module], dict[str, Any]]) -> None:
    """In float64, to a relative error of 1e-10, for some random architectures; their widths are aligned."""
    double = nn.Module.to(slice(module, space, Architecture.dense(space)), torch.float64)
    call = inputs(double)
    for seed, keep in enumerate((0.0, 0.5, 0.9)):
        architecture = Architecture.random(space, keep, seed)
        with torch.no_grad(), gated(double, space, architecture.gates):
            masked = double(**call).sample
        small = slice(double, space, architecture)
        with torch.no_grad():
            sliced = small(**call).sample
        for tap, channels in {tap: site.channels for site in space.sites for tap in site.taps}.items():
            if (weight := dict(small.named_parameters()).get(f"{tap}.weight")) is not None:
                assert weight.shape[1] % space.align == 0 or weight.shape[1] == channels, tap
        error = ((masked - sliced).norm() / sliced.norm()).item()
        assert error <= 1e-10, f"masked and sliced differ by {error:.1e} at keep={keep}"


def check_budget(budget: BudgetEstimator) -> None:
    """On each family: dense and floor are right; cost never falls as a gate opens.

    It is linear in a width gate whose site has a whole number of other units.
    """
    for make in MODELS.values():
        module = make()
        space = tiny_space(module)
        model = budget.profile(denoiser_of(module), module, space, tiny_inputs(module))
        assert model.unit
        assert model.cost(space.ones()).item() == model.dense > 0
        assert 0 <= model.floor < 1
        smallest = Architecture.random(space, keep=0.0, seed=1)
        assert abs(model.fraction(smallest.gates).item() - model.floor) <= 1e-6
        gates = torch.rand(3, space.num_gates, dtype=torch.float64).requires_grad_()
        cost = model.cost(gates)
        assert cost.shape == (3,)
        (slope,) = torch.autograd.grad(cost.sum(), gates)
        assert slope.isfinite().all()
        assert (slope >= 0).all(), "a gate that opens makes it cheaper"
        gate = int(space.width_gates.nonzero()[0])
        ends = torch.rand(space.num_gates, dtype=torch.float64).repeat(3, 1)
        ends[:, space.slices[int(space.site_of_gate[gate])]] = 1.0
        ends[:, gate] = torch.tensor([0.0, 0.5, 1.0])
        low, middle, high = model.cost(ends).tolist()
        assert abs(low + high - 2 * middle) <= 1e-9 * high, "cost is not linear in a width gate"


def check_pruner(pruner: StaticPruner, targets: Sequence[float] = (0.9, 0.6), align: int = 1) -> None:
    """Meets the budget within 1% or half a unit's cost, leaves the model alone, and refuses what is under the floor.

    In a space that is aligned to so many channels, half of the cost of the units that go together.

    A pruner may refuse a target with a sentence that names the floor, but not all of them. One that takes no target
    (`takes_target`) gives the same architecture for each, smaller than the dense one.
    """
    unet = tiny_unet("sd2")
    space = tiny_space(unet, align)
    costs = tiny_cost_model(unet, space)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    found = {}
    for target in targets:
        asked = tiny_pruner_context(unet, space, target)
        pruned = _pruned_or_refused(pruner, asked)
        if pruned is None:
            continue
        found[target] = pruned.architecture.gates
        cost = costs.fraction(found[target]).item()
        if pruner.takes_target:
            assert abs(cost - target) <= max(0.01 * target, _level(asked, found[target]) / 2), (
                f"cost {cost:.3f} for a budget of {target}"
            )
        else:
            assert cost < 1, "it drops nothing"
        for name, weight in (pruned.weights or {}).items():
            assert weight.shape == before[name].shape, name
    assert found, f"none of the budgets {targets} is met"
    if pruner.takes_target:
        under = tiny_pruner_context(unet, space, costs.floor / 2)
        assert _pruned_or_refused(pruner, under) is None, "a budget under the floor is met"
    else:
        assert len(found) == len(targets)
        assert len(torch.stack(list(found.values())).unique(dim=0)) == 1, "a target changes what it drops"
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items()), "weights were changed"
    assert all(parameter.grad is None for parameter in unet.parameters()), "gradients were left behind"
    hooks = (hooks for m in unet.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))
    assert not any(hooks), "hooks were left behind"


def _pruned_or_refused(pruner: StaticPruner, context: PrunerContext) -> Pruned | None:
    """What it answers; None for a refusal, which `check` must make too, and which must name the floor."""
    refusals = []
    pruned = None
    for ask in (pruner.check, pruner.prune):
        try:
            pruned = ask(context)
        except RequestError as error:
            refusals.append(str(error))
    assert len(refusals) in (0, 2), f"check and prune disagree about a budget of {context.target}: {refusals}"
    assert all("floor" in refusal for refusal in refusals), f"refused without naming the floor: {refusals}"
    return pruned


def _level(context: PrunerContext, gates: Float[Tensor, "gates"]) -> float:
    """The largest change of cost by the gates of a site that go together."""
    costs, rows = context.cost_model, []
    for place, size in zip(context.space.slices, context.space.strides, strict=True):
        for value in (0.0, 1.0):
            rows.append(gates.clone())
            rows[-1][place.start + (gates[place] != value).nonzero().flatten()[:size]] = value
    flipped = torch.stack(rows)
    return (costs.fraction(flipped) - costs.fraction(gates)).abs().max().item()


def tiny_pruner_context(unet: nn.Module, space: SearchSpace, target: float = 0.66, seed: int = 0) -> PrunerContext:
    """What a run gives a pruner, on random inputs; from now on the weights of `unet` take gradients.

    Its `search` stands for a real one: an architecture drawn by seed that meets the budget.
    """
    unet.requires_grad_(True)

    def losses(*, batches: int, timestep: int | None = None) -> Iterator[Float[Tensor, ""]]:
        for batch in range(batches):
            inputs = tiny_inputs(unet, 2, seed=batch)
            if timestep is not None:
                inputs["timestep"] = torch.full_like(inputs["timestep"], timestep)
            latents = next(iter(inputs.values()))
            yield (unet(**inputs).sample - latents).square().mean()

    def search() -> Pruned:
        return Pruned(keep_best(context, torch.rand(space.num_gates, generator=torch.Generator().manual_seed(seed))))

    costs = tiny_cost_model(unet, space)
    context = PrunerContext(unet, space, costs, target, seed, losses, search=search)
    return context
